"""The VQGAN equals the recorded original, and every published name finds its place."""

import copy
import json

import pytest
import torch
from tiny_parts import naming

from migm.bases.vqgan import VQGAN
from migm.runtime.errors import UserError

PUBLISHED = {
    "double_z": False,
    "z_channels": 256,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [16],
    "dropout": 0.0,
}


@pytest.fixture(scope="module")
def case(read_vector, recorded_vqgan):
    return recorded_vqgan("maskgit_vq_tiny"), read_vector("maskgit_vq_tiny")[0]


def test_decoding_equals_the_recorded_pixels(case):
    net, tensors = case
    codes = tensors["in.code"]
    pixels = net.pixel_values(codes.flatten(1), tuple(codes.shape[1:]))
    torch.testing.assert_close(pixels, tensors["out.pixels"], rtol=2e-5, atol=2e-5)


def test_encoding_equals_the_recorded_latents_and_codes(case):
    net, tensors = case
    latents = net.latents(tensors["in.image"])
    torch.testing.assert_close(latents, tensors["out.prequant"], rtol=2e-5, atol=2e-5)
    assert torch.equal(net.vq.quantize(latents)[2][2].flatten(), tensors["out.index"])


def test_tokens_are_row_major_and_those_of_pixels_in_minus_one_to_one(case):
    net, image = copy.deepcopy(case[0]), case[1]["in.image"][:1]
    latents = net.latents(image).flatten(2)[0].T
    net.vq.quantize.embedding.weight[: len(latents)] = latents
    pixels = ((image + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(net.to_tokens(pixels)[0], torch.arange(len(latents)))


@pytest.mark.parametrize("pixels", ["clamp", "min_max"])
def test_pixels_become_bytes_by_both_rules(case, pixels):
    net, codes = copy.deepcopy(case[0]), case[1]["in.code"]
    net.pixels, grid = pixels, tuple(codes.shape[1:])
    values = net.pixel_values(codes.flatten(1), grid)
    assert values.min() < -1 < 1 < values.max()
    if pixels == "clamp":
        wanted = (values.clamp(-1, 1) * 127.5 + 127.5).round()
    else:  # every image by itself, floored
        wanted = torch.stack([((x - x.min()) / (x.max() - x.min()) * 255).floor() for x in values])
    assert torch.equal(net.to_images(codes.flatten(1), grid), wanted.to(torch.uint8))


def test_the_published_shape_has_the_published_tensors():
    with torch.device("meta"):
        tensors = VQGAN(PUBLISHED, 1024, 256).state_dict()
    assert len(tensors) == 343
    assert sum(t.numel() for t in tensors.values()) == 72_141_699


def test_training_losses_are_left_out_and_foreign_names_kept():
    net = VQGAN({**PUBLISHED, "ch": 32, "z_channels": 32, "num_res_blocks": 1}, 24, 32)
    renamed = net.from_published({"loss.discriminator.main.0.weight": torch.zeros(1), "teacher.w": torch.zeros(1)})
    assert list(renamed) == ["vq.teacher.w"]


def test_a_model_yaml_gives_the_arguments(tmp_path):
    small = {**PUBLISHED, "ch": 32, "z_channels": 32, "num_res_blocks": 1}
    loss = {"target": "taming.modules.losses.Dummy"}
    content = {"model": {"params": {"embed_dim": 32, "n_embed": 24, "ddconfig": small, "lossconfig": loss}}}
    (tmp_path / "model.yaml").write_text(json.dumps(content))  # JSON is YAML
    with torch.device("meta"):
        found = VQGAN(PUBLISHED, 1024, 256, model_yaml=str(tmp_path / "model.yaml")).state_dict()
        wanted = VQGAN(small, 24, 32).state_dict()
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in wanted.items()}


@pytest.mark.parametrize("content", ["", "model: {params: {n_embed: 3}}", "a: [", "- 3"])
def test_another_yaml_is_refused(tmp_path, content):
    (tmp_path / "model.yaml").write_text(content)
    with pytest.raises(UserError, match=naming("base.tokenizer.model_yaml", "is no taming model.yaml")):
        VQGAN(PUBLISHED, 1024, 256, model_yaml=str(tmp_path / "model.yaml"))
