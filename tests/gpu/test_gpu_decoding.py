"""The decoder in bfloat16 on a real CUDA device, at the shape of the published text-to-image base.

`make test-gpu` runs it. MIGM_TEST_DEVICE=cpu rehearses it with small parts where there is no such device.
"""

import copy
import os

import pytest
import torch
from decoders import difference, narrowed, with_tokens

from migm.bases import decoding
from migm.evaluation.memory import peak_bytes

pytestmark = pytest.mark.gpu
DEVICE = os.environ.get("MIGM_TEST_DEVICE", "cuda")


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def test_an_image_of_1024_px_stays_within_a_grey_level_on_average_and_in_bounded_memory():
    name, side = ("amused", 4) if DEVICE == "cpu" else ("published", 64)
    wide, tokens = with_tokens(name, (side, side), count=2, device=DEVICE)
    auto = narrowed(wide) if DEVICE == "cpu" else decoding.placed(copy.deepcopy(wide), "auto", tokens.device)
    grid = (side, side)
    right, found = (decoding.decode(each, tokens, grid) for each in (wide, auto))
    off = difference(found, right)
    assert 0 < off.mean() <= 1, f"{off.mean():.2f} grey levels, at most {off.max():.0f}"
    assert torch.equal(auto.to_tokens(right), wide.to_tokens(right))
    each = decoding.image_bytes(auto, grid)
    held = peak_bytes(lambda: decoding.decode(auto, tokens, grid), tokens.device)
    assert held < 1.25 * max(decoding.BYTES, each)
    assert each == decoding.image_bytes(wide, grid) // 2
