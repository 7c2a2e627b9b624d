"""What CUDA's kernels leave open is not asked of them, and memory is bounded: decoding, and batches that do not fit."""

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from decoders import narrowed, with_tokens
from pretend_cuda import CPU, CUDA, pretended
from tiny_parts import text_base
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import migm.benchmarks.compute
from migm.bases import decoding
from migm.bases.amused import AmusedVQ
from migm.bases.attention import attention
from migm.bases.base import Control
from migm.bases.llada import LLaDA
from migm.bases.tokenizer import ConvVQ
from migm.bases.vqgan import VQGAN
from migm.evaluation.memory import peak_bytes
from migm.shortcuts.dimoo import DiMOOShortcut
from migm.shortcuts.maskgit import MaskGITShortcut

SOME = torch.arange(9) < torch.tensor([[0], [5], [9]])  # keys that count, none in the first row


@pytest.fixture
def take_fused(monkeypatch) -> Callable[[], None]:
    """Takes a kernel as CUDA's: anything comes out where no key counts, and it does not do without any."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0) -> Tensor:
        assert k.shape[-2]
        out = scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p)
        return out if attn_mask is None else out.where(attn_mask.any(-1, keepdim=True), float("nan"))

    return lambda: monkeypatch.setattr("migm.bases.attention.scaled_dot_product_attention", kernel)


def heads(keys: int = 9) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4, n, 12, generator=generator).requires_grad_() for n in (7, keys, keys)]


def test_attention_is_zero_where_no_key_counts_whatever_the_kernel(take_fused):
    take_fused()
    q, k, v = heads()
    mask = SOME[:, None, None]
    found = attention(q, k, v, mask)
    assert not found[0].any()
    assert torch.equal(found[1:], scaled_dot_product_attention(q, k, v, attn_mask=mask)[1:])
    found.sum().backward()
    for x in (q, k, v):
        assert x.grad is not None
        assert not x.grad[0].any()
        assert x.grad[1:].any()
        assert x.grad.isfinite().all()


def test_attention_is_zero_without_keys_whatever_the_kernel(take_fused):
    take_fused()
    q, k, v = heads(keys=0)
    attention(q, k, v).sum().backward()
    assert not attention(q, k, v).any()
    assert q.grad is not None
    assert not q.grad.any()


def networks() -> list[nn.Module]:
    torch.manual_seed(0)
    made = [MaskGITShortcut(48, num_heads=4), DiMOOShortcut(48, num_heads=4, mlp_channels=32)]
    for net in made:
        for weight in net.parameters():
            nn.init.normal_(weight, std=0.2)
    return made


@pytest.mark.parametrize("index", [0, 1], ids=["maskgit", "dimoo"])
def test_a_shortcut_after_a_step_that_revealed_nothing_does_not_depend_on_the_kernel(take_fused, index):
    generator = torch.Generator().manual_seed(0)
    features, embeddings = (torch.randn(3, n, 48, generator=generator) for n in (17, 9))
    new = Control(embeddings, torch.arange(9).expand(3, -1), SOME)
    none = Control(embeddings[:, :0], new.rows[:, :0])
    net, ratio = networks()[index], torch.full((3,), 0.5)
    wanted = [net(features, each, ratio) for each in (new, none)]
    take_fused()
    for each, right in zip((new, none), wanted, strict=True):
        assert torch.equal(net(features, each, ratio), right)
    torch.testing.assert_close(wanted[0][0], wanted[1][0], rtol=1e-5, atol=1e-5)


VQ = {"ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1, "z_channels": 32, "resolution": 64, "in_channels": 3}
DECODERS: dict[str, Any] = {
    "conv": lambda: ConvVQ(num_codes=64, code_channels=4, channels=96),
    "vqgan": lambda: VQGAN({**VQ, "out_ch": 3, "attn_resolutions": [16]}, 64, 32),
    "vqgan with wider levels": lambda: VQGAN({**VQ, "out_ch": 3, "ch_mult": [1, 2, 2], "attn_resolutions": []}, 64, 32),
    "amused": lambda: AmusedVQ((32, 64, 64), 1, 8, 64),
}


@pytest.mark.parametrize("name", DECODERS)
def test_decoding_holds_what_is_reckoned_for_an_image(name):
    tokenizer, grid = DECODERS[name]().eval().requires_grad_(False), (16, 16)
    tokens = torch.randint(0, 64, (2, 256), generator=torch.Generator().manual_seed(0))
    each = peak_bytes(lambda: tokenizer.to_images(tokens, grid), torch.device("cpu")) / 2
    assert 0.5 < each / decoding.image_bytes(tokenizer, grid) < 1.2


@pytest.mark.parametrize("kind", ["maskgit", "dimoo"])
def test_a_batch_is_decoded_in_parts_that_fit(make_base, monkeypatch, kind):
    base = make_base() if kind == "maskgit" else text_base()
    tokens = torch.randint(0, 24, (5, 16), generator=torch.Generator().manual_seed(0))
    whole, draw, sizes = base.decode(tokens), type(base.tokenizer).to_images, []
    assert whole.float().std() > 1

    def watched(self: Any, part: Tensor, grid: tuple[int, int]) -> Tensor:
        sizes.append(len(part))
        return draw(self, part, grid)

    monkeypatch.setattr(type(base.tokenizer), "to_images", watched)
    each = decoding.image_bytes(base.tokenizer, base.spec.grid)
    for fits, parts in ((2 * each, [2, 2, 1]), (each // 2, [1] * 5), (5 * each, [5])):
        monkeypatch.setattr(decoding, "BYTES", fits)
        found = base.decode(tokens)
        assert (sizes, found.dtype) == (parts, torch.uint8)
        # Convolutions may sum in another order at another batch size: one grey level where rounding flips.
        assert (found.int() - whole.int()).abs().max() <= (parts != [5])
        sizes.clear()


def test_the_published_base_decodes_three_images_at_once():
    """2,568 bytes a pixel were measured at 512 px, 86 GB for a batch of 128."""
    ddconfig = {**VQ, "ch": 128, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "z_channels": 256, "resolution": 256}
    with torch.device("meta"):
        tokenizer = VQGAN({**ddconfig, "out_ch": 3, "attn_resolutions": [16]}, 1024, 256)
    assert decoding.image_bytes(tokenizer, (32, 32)) == pytest.approx(2568 * 512**2, rel=0.01)
    assert decoding.BYTES // decoding.image_bytes(tokenizer, (32, 32)) == 3


def test_what_did_not_fit_is_let_go_before_a_smaller_batch_is_tried(capfd, monkeypatch):
    held: list[weakref.ref[Tensor]] = []
    emptied: list[bool] = []

    def measured(batch_size: int) -> None:
        assert not any(each() is not None for each in held)
        large = torch.zeros(batch_size, 1000)
        held.append(weakref.ref(large))
        around = [large]
        around.append(around)  # type: ignore[arg-type]  # as the closures of a job: only collecting frees it
        if batch_size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(any(each() is not None for each in held)))
    gc.disable()
    try:
        assert migm.benchmarks.compute.fitting(measured, 12) == 3
    finally:
        gc.enable()
    assert emptied == [False, False]
    said = capfd.readouterr().out
    assert "batch 12 does not fit the device's memory: trying 6" in said
    assert "batch 6 does not fit the device's memory: trying 3" in said


def test_a_single_image_that_does_not_fit_is_the_end():
    def measured(batch_size: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        migm.benchmarks.compute.fitting(measured, 2)


@pytest.mark.parametrize("name", ["conv", "vqgan", "amused"])
def test_auto_decodes_in_two_precisions_on_cuda_alone(name):
    wide, tokens = with_tokens(name, (4, 4))
    narrow, images = narrowed(wide), wide.to_images(tokens, (4, 4))
    wanted = narrow.to_images(tokens, (4, 4))
    assert not torch.equal(wanted, images)
    on_cpu = decoding.placed(copy.deepcopy(wide), "auto", CPU)
    assert torch.equal(on_cpu.to_images(tokens, (4, 4)), images)
    with pretended():
        placed = decoding.placed(copy.deepcopy(wide), "auto", CUDA)
        assert {weight.device.type for weight in placed.parameters()} == {"cuda"}
        assert torch.equal(placed.to_images(tokens.to(CUDA), (4, 4)).cpu(), wanted)
        assert torch.equal(placed.to_tokens(images.to(CUDA)).cpu(), wide.to_tokens(images))
        assert decoding.fingerprint(placed) == decoding.fingerprint(narrow)


def test_a_small_random_base_is_drawn_on_the_cpu_so_that_it_is_the_same_on_every_device(monkeypatch):
    drawn, draw = [], LLaDA.init_weights
    monkeypatch.setattr(LLaDA, "init_weights", lambda net: drawn.append(net.ff_out.weight.device.type) or draw(net))
    with pretended():
        base = text_base(device="cuda")
        assert base.transformer.ff_out.weight.device.type == "cuda"
    assert drawn == ["cpu"]
