"""The tiny experiments' whole chain and the paths of `tests/cuda` on a real CUDA device, compared with the CPU.

`make test-gpu` runs it. MIGM_TEST_DEVICE=cpu rehearses all of it where there is no such device.
"""

import os
from collections.abc import Iterator

import chain
import device_checks as checks
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.refresh import Always
from migm.bases import decoding
from migm.bases.attention import attention
from migm.bases.vqgan import VQGAN
from migm.evaluation.memory import peak_bytes

pytestmark = pytest.mark.gpu
DEVICE = os.environ.get("MIGM_TEST_DEVICE", "cuda")
VQ = {"ch": 128, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "z_channels": 256, "resolution": 256}


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """A device, which computes float32 in float32 meanwhile."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("kind", chain.KINDS)
def test_every_command_draws_the_tokens_that_the_cpu_draws(call_main, assets, tmp_path, kind):
    wanted = chain.run(call_main, kind, "cpu", tmp_path / "cpu", assets)
    found = chain.run(call_main, kind, DEVICE, tmp_path / "other", assets, list(chain.BENCH), like=tmp_path / "cpu")
    chain.compare(found, wanted, rounding=True)


PATHS = {
    "tokens and images": (checks.drawn, Accelerator(Always())),
    "in-painting": (checks.painted,),
    "training": (checks.trained,),
    "training with divergence": (checks.trained, "mse_kl"),
    "roll-out": (checks.trained, "rollout"),
    "stored": (checks.stored,),
    "stored in 8 bits": (checks.stored, "int8"),
    "stored as tokens": (checks.stored, "tokens"),
    "fit": (checks.fitted,),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["maskgit", "dimoo"])
def test_a_path_gives_what_it_gives_on_the_cpu(make_base, make_sampling, kind, path):
    """Tokens are equal; of images, and of features in 8 bits, a rounding may flip."""
    check, *arguments = PATHS[path]
    places = [checks.Place(kind, device, make_base(), make_sampling(num_steps=4)) for device in ("cpu", DEVICE)]
    wanted, found = (check(place, *arguments) for place in places)
    assert len(found) == len(wanted)
    for ours, right in zip(found, wanted, strict=True):
        if right.dtype in (torch.uint8, torch.int8) and right.dim() > 2:
            assert (ours.int() - right.int()).abs().float().mean() < 0.5
        else:
            torch.testing.assert_close(ours, right, rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [12, 48, 64])
def test_attention_is_zero_where_no_key_counts(dtype, channels):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 4, n, channels, generator=generator).to(DEVICE, dtype) for n in (70, 9, 9))
    mask = (torch.arange(9) < torch.tensor([[0], [5], [9]]))[:, None, None].to(DEVICE)
    found = attention(q, k, v, mask)
    assert not found[0].any()
    right = scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask)[1:]
    torch.testing.assert_close(found[1:].double(), right, rtol=0.02, atol=0.02)
    assert not attention(q, k[:, :, :0], v[:, :, :0]).any()


def test_decoding_a_batch_of_512_px_stays_within_its_bound(monkeypatch):
    if DEVICE == "cpu":  # a rehearsal: a small image a part
        monkeypatch.setattr(decoding, "BYTES", 1)
    side, batch = (8, 2) if DEVICE == "cpu" else (32, 8)
    tokenizer = VQGAN({**VQ, "in_channels": 3, "out_ch": 3, "attn_resolutions": [16]}, 1024, 256)
    tokenizer = tokenizer.to(DEVICE).eval().requires_grad_(False)
    tokens = torch.zeros(batch, side**2, dtype=torch.long, device=DEVICE)
    held = peak_bytes(lambda: decoding.decode(tokenizer, tokens, (side, side)), tokens.device)
    least = decoding.image_bytes(tokenizer, (side, side))
    assert held < 1.25 * max(decoding.BYTES, least)
