"""The decoder's precision: what `auto` means, and how near bfloat16 stays to float32 (on a CPU, in place of CUDA)."""

import copy
import weakref
from typing import Any

import pytest
import torch
from decoders import book_of, difference, narrowed, with_tokens
from tiny_parts import text_base
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import migm
from migm.bases import decoding
from migm.runtime.files import tensors_hash

CPU = torch.device("cpu")
SMALL = ["conv", "vqgan", "amused"]
GRID = (4, 4)


class Held(TorchDispatchMode):
    """Counts the bytes of what operators return as long as it lives.

    Memory inside of an operator is left out: a CPU unfolds the maps for a convolution in bfloat16, CUDA does not.
    """

    def __init__(self):
        super().__init__()
        self.peak, self.known = 0, {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.known:
                self.known[storage.data_ptr()] = storage.nbytes()
                weakref.finalize(storage, self.known.pop, storage.data_ptr(), None)
        self.peak = max(self.peak, sum(self.known.values()))
        return out


@pytest.mark.parametrize("name", SMALL)
def test_images_stay_within_a_grey_level_on_average_and_keep_most_of_their_pixels(name):
    tokenizer, tokens = with_tokens(name, GRID)
    off = difference(narrowed(tokenizer).to_images(tokens, GRID), tokenizer.to_images(tokens, GRID))
    assert 0 < off.mean() <= 1
    assert off.max() <= 12


def test_the_published_text_to_image_decoder_stays_within_a_grey_level_on_average():
    tokenizer, tokens = with_tokens("published", (2, 2), count=1)
    right = tokenizer.to_images(tokens, (2, 2))
    decoding.narrow(tokenizer)
    assert 0 < difference(tokenizer.to_images(tokens, (2, 2)), right).mean() <= 1


@pytest.mark.parametrize("drawn", ["random", "by the base"])
def test_the_bundled_tokenizer_stays_within_a_grey_level(drawn):
    base: Any = migm.load_base("cifar10", device="cpu", dtype="float32")
    tokens = torch.randint(0, 256, (10, 64), generator=torch.Generator().manual_seed(0))
    if drawn == "by the base":
        sampler = migm.Sampler(base, num_steps=8)
        tokens = sampler.tokens(torch.arange(10), sampler.noise(0, torch.arange(10)))
    off = difference(narrowed(base.tokenizer).to_images(tokens, (8, 8)), base.decode(tokens))
    assert 0 < off.mean() <= 0.2
    assert off.max() <= 2


@pytest.mark.parametrize("name", SMALL)
def test_ids_of_images_are_those_of_float32(name):
    tokenizer, _ = with_tokens(name, GRID)
    side = 4 * tokenizer.stride
    images = torch.randint(0, 256, (8, 3, side, side), dtype=torch.uint8)
    book_of(tokenizer).weight.mul_(0.01)  # beside large codes an untrained encoder's latents all look alike
    ids = tokenizer.to_tokens(images)
    assert len(ids.unique()) > 1
    assert torch.equal(narrowed(tokenizer).to_tokens(images), ids)


@pytest.mark.parametrize("name", SMALL)
def test_only_the_large_maps_are_narrow_and_have_their_channels_last(name):
    tokenizer, tokens = with_tokens(name, GRID)
    before = {key: (value.shape, value.dtype) for key, value in tokenizer.state_dict().items()}
    narrow = narrowed(tokenizer)
    after = {key: (value.shape, value.dtype) for key, value in narrow.state_dict().items()}
    assert {key: shape for key, (shape, _) in after.items()} == {key: shape for key, (shape, _) in before.items()}
    changed = {key for key in after if after[key] != before[key]}
    *fine, last = narrow.fine_parts()
    layers = [module for part in fine for module in part.modules() if not isinstance(module, nn.GroupNorm)]
    weights = {weight for layer in layers for weight in layer.parameters(recurse=False)}
    assert changed == {key for key, weight in narrow.named_parameters() if weight in weights}
    assert changed
    seen: list[tuple[nn.Module, Tensor]] = []
    for part in (*fine, last):
        for module in part.modules():
            if isinstance(module, nn.Conv2d | nn.GroupNorm):
                module.register_forward_hook(lambda m, _, out: seen.append((m, out)))
    narrow.to_images(tokens, GRID)
    assert len(seen) > 3
    for module, out in seen:
        wanted = torch.float32 if module is last else torch.bfloat16
        assert out.dtype == wanted
        if out.ndim == 4 and module is not last:
            assert out.is_contiguous(memory_format=torch.channels_last), module


@pytest.mark.parametrize("shape", [(2, 12, 5, 7), (3, 12, 9), (1, 12, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_is_that_of_torch(shape, dtype):
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 12, eps=1e-3).requires_grad_(False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (torch.randn(shape) * torch.linspace(0.5, 3, 12).view(-1, *(1 for _ in shape[2:])) + 4).to(dtype)
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    found = decoding.ChannelsLastNorm(norm)(x)
    assert (found.dtype, found.stride()) == (dtype, x.stride())
    rtol = 1e-2 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(found, norm(x.float()).to(dtype), rtol=rtol, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_parts_are_bounded_by_the_precision_that_decoding_uses(name, monkeypatch):
    tokenizer, tokens = with_tokens(name, (16, 16))
    ready = narrowed(tokenizer)
    wide, narrow = (decoding.image_bytes(each, (16, 16)) for each in (tokenizer, ready))
    assert wide == 2 * narrow
    with Held() as held:
        ready.to_images(tokens, (16, 16))
    assert 0.5 < held.peak / 2 / narrow < 1.2
    sizes: list[int] = []
    draw = type(tokenizer).to_images

    def watched(self: Any, part: Tensor, grid: tuple[int, int]) -> Tensor:
        sizes.append(len(part))
        return draw(self, part, grid)

    monkeypatch.setattr(type(tokenizer), "to_images", watched)
    monkeypatch.setattr(decoding, "BYTES", 2 * narrow)
    decoding.decode(ready, tokens, (16, 16))
    decoding.decode(tokenizer, tokens, (16, 16))
    assert sizes == [2, 1, 1]


@pytest.mark.parametrize("name", SMALL)
def test_the_fingerprint_tells_the_precision(name):
    tokenizer, _ = with_tokens(name, GRID)
    assert decoding.fingerprint(tokenizer) == tensors_hash(tokenizer.state_dict())  # as kept results have it
    narrow = narrowed(tokenizer)
    found = {decoding.fingerprint(each) for each in (tokenizer, narrow, copy.deepcopy(tokenizer).bfloat16())}
    assert len(found) == 3
    # Weights that bfloat16 holds exactly give other images all the same.
    assert decoding.fingerprint(narrow) != decoding.fingerprint(narrow.float())


@pytest.mark.parametrize("name", SMALL)
def test_auto_is_float32_on_a_cpu_and_narrow_on_cuda(name, monkeypatch):
    tokenizer, tokens = with_tokens(name, GRID)
    right, called = tokenizer.to_images(tokens, GRID), []
    monkeypatch.setattr(decoding, "narrow", called.append)
    placed = decoding.placed(copy.deepcopy(tokenizer), "auto", CPU)
    assert torch.equal(placed.to_images(tokens, GRID), right)
    assert {weight.dtype for weight in placed.parameters()} == {torch.float32}
    assert not called
    monkeypatch.setattr(nn.Module, "to", lambda self, *_: self)  # there is no such device here
    decoding.placed(tokenizer, "auto", torch.device("cuda"))
    assert called == [tokenizer]
    for dtype in ("float32", "bfloat16", torch.float32):
        decoding.placed(tokenizer, dtype, torch.device("cuda"))
    assert called == [tokenizer]


def test_a_narrow_tokenizer_can_be_placed_again():
    tokenizer, tokens = with_tokens("amused", GRID)
    wide = tokenizer.to_images(tokens, GRID)
    again = decoding.placed(narrowed(tokenizer), "float32", CPU)
    assert difference(again.to_images(tokens, GRID), wide).mean() <= 1
    assert decoding.image_bytes(again, GRID) == decoding.image_bytes(tokenizer, GRID)


def test_a_base_decodes_and_hashes_by_its_tokenizer_dtype():
    wide, auto, narrow = (text_base(tokenizer_dtype=dtype) for dtype in ("float32", "auto", "bfloat16"))
    assert wide.decoder_fingerprint() == auto.decoder_fingerprint() != narrow.decoder_fingerprint()
    for base in (wide, auto):
        assert {weight.dtype for weight in base.tokenizer.parameters()} == {torch.float32}
