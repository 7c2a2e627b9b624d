"""LlamaGen's tokenizer equals the recorded one, and every published name finds its place."""

import pytest
import torch
from halton_cases import close, llamagen
from tiny_parts import state_dict

from migm.bases.llamagen import USED, LlamaGenVQ


@pytest.fixture(scope="module")
def case(read_vector):
    tensors, meta = read_vector("halton_vq_tiny")
    return llamagen(tensors, meta), tensors


def test_codes_have_unit_length_though_the_file_s_have_not(case):
    net, tensors = case
    recorded = tensors["sd.quantize.embedding.weight"].norm(dim=-1)
    assert (recorded - 1).abs().max() > 0.1
    codes = net.vq.quantize.embedding(tensors["in.code"]).permute(0, 3, 1, 2)
    assert torch.equal(codes, tensors["act.entry"])


def test_decoding_equals_the_recorded_pixels_and_their_bytes(case):
    net, tensors = case
    codes = tensors["in.code"]
    tokens, grid = codes.flatten(1), tuple(codes.shape[1:])
    close(net.pixel_values(tokens, grid), tensors["out.pixels"])
    same = net.to_images(tokens, grid) == to_bytes(tensors["out.pixels"])
    levels = (tensors["out.pixels"] + 1) * 127.5
    halfway = (levels - levels.floor() - 0.5).abs() < 0.01  # rounding follows the last bit there
    assert (same | halfway).all()
    assert same.float().mean() > 0.999


def test_encoding_equals_the_recorded_latents_and_ids(case):
    net, tensors = case
    latents = net.latents(tensors["in.image"])
    close(latents, tensors["out.prequant"])
    quantised, _, (_, _, ids) = net.vq.quantize(latents)
    assert torch.equal(ids.flatten(), tensors["out.index"])
    close(quantised, tensors["out.quant"])


def test_tokens_of_bytes_are_row_major_and_nearest_by_angle(case):
    net, tensors = case
    images = to_bytes(tensors["in.image"].clamp(-1, 1))
    latents = net.latents(images.float() / 127.5 - 1).flatten(2).transpose(1, 2)
    wanted = (latents @ net.vq.quantize.embedding.weight.T).argmax(-1)
    assert torch.equal(net.to_tokens(images), wanted)
    assert len(wanted.unique()) > 1


def test_the_published_shape_has_the_published_tensors():
    with torch.device("meta"):
        tensors = LlamaGenVQ().state_dict()
    assert len(tensors) == 343
    assert sum(t.numel() for t in tensors.values()) == 71_883_403


def test_the_statistic_of_training_is_left_out_and_foreign_names_are_kept(case):
    net, tensors = case
    file = {**state_dict(tensors), USED: torch.zeros(9), "teacher.w": torch.zeros(1)}
    renamed = net.from_published(file)
    assert set(renamed) == {*net.state_dict(), "vq.teacher.w"}


def to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
