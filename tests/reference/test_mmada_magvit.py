"""MAGVIT-v2 against the recorded encoder, decoder and quantiser."""

import json

import pytest
import torch
from mmada_recordings import recorded_magvit
from safetensors.torch import save_file

from migm.bases.magvit import COMPUTED, Levels, MagvitV2, grey_levels


@pytest.fixture(scope="module")
def io(read_vector):
    return read_vector("mmada_magvit_io")


@pytest.fixture(scope="module", params=["safetensors", "bin"])
def magvit(request, read_vector, tmp_path_factory):
    """Loaded from a file as it is published."""
    net, tensors = recorded_magvit(read_vector)
    path = tmp_path_factory.mktemp("magvit") / f"pytorch_model.{request.param}"
    save_file(tensors, path) if request.param == "safetensors" else torch.save(tensors, path)
    assert set(COMPUTED) < set(tensors)
    net.load(path, "base.tokenizer_weights")
    return net.eval().requires_grad_(False)


def near(ours, right):
    torch.testing.assert_close(ours, right, rtol=0, atol=2e-5 * float(right.abs().max()))


def test_latents_signs_and_ids_are_the_recorded_ones(io, magvit):
    tensors, meta = io
    assert magvit.stride == int(meta["stride"])
    latents = magvit.latents(tensors["in.image"])
    near(latents, tensors["out.latents"])
    ids = magvit.ids(latents)
    assert torch.equal(ids, tensors["out.index"])
    assert torch.equal(magvit.entries(ids).view_as(latents), tensors["out.quantized"])


def test_pixels_and_bytes_are_the_recorded_ones(io, magvit):
    tensors, meta = io
    side = round(tensors["in.code"].shape[1] ** 0.5)
    pixels, recorded = magvit.pixel_values(tensors["in.code"], (side, side)), tensors["out.pixels"]
    near(pixels, recorded)
    assert torch.equal(grey_levels(recorded), tensors["out.images"])
    images = magvit.to_images(tensors["in.code"], (side, side))
    differ = images != tensors["out.images"]
    # A level is cut off at a whole number, to one side of which or the other rounding may bring a pixel.
    values = ((recorded.double() + 1) / 2 * 255)[differ]
    assert ((values - values.round()).abs() < 255 * 2e-5 * float(recorded.abs().max())).all()
    assert int(differ.sum()) < 1e-3 * differ.numel()
    assert int((images.int() - tensors["out.images"].int()).abs().max()) <= 1
    height, width = json.loads(meta["rect"])
    near(magvit.pixel_values(tensors["in.code_rect"], (height, width)), tensors["out.pixels_rect"])


def test_the_published_bits_have_the_recorded_order(io):
    tensors, _ = io
    level = Levels(32, [1], [1])
    magvit = MagvitV2(level, level, bits=tensors["lfq13.entry"].shape[1])
    assert torch.equal(magvit.entries(tensors["lfq13.id"][None])[0].T, tensors["lfq13.entry"])
    index = tensors["lfq13.index"].flatten(1)
    assert torch.equal(magvit.ids(tensors["lfq13.latents"]), index)
    assert (tensors["lfq13.latents"] == 0).any()  # not above 0
