"""Decode tokens to images: in bounded memory, whatever the batch size, and on CUDA mostly in bfloat16."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from migm.bases.base import BaseSpec, refuse_other_size
from migm.bases.linear import LinearKind, with_linear
from migm.runtime.device import DTypeName, pick_dtype
from migm.runtime.files import tensors_hash
from migm.runtime.shapes import Images, Tokens

BYTES = 2 * 1024**3  # limit of decoding, beyond tokens and images
MAPS = 5  # largest maps held together: 2,568 bytes a pixel were measured at 128 channels in float32


class Decoder(Protocol):
    """An image tokenizer as decoding sees it."""

    stride: int  # pixels a token in each direction
    pixel_channels: int  # channels of the largest maps, over the pixels of the image

    def fine_parts(self) -> Sequence[nn.Module]:
        """Return the decoder's last parts in their order: those with the large maps, then the layer of the pixels."""
        ...

    def modules(self) -> Iterator[nn.Module]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def to_images(self, tokens: Tokens, grid: tuple[int, int]) -> Images: ...


AnyTokenizer = TypeVar("AnyTokenizer", bound=nn.Module)


def placed(tokenizer: AnyTokenizer, dtype: DTypeName | torch.dtype, device: torch.device) -> AnyTokenizer:
    """Move a tokenizer to `device` and freeze it, in one precision or, with `auto`, in the one that suits its halves.

    `auto` is float32, so that images become the same ids everywhere; on CUDA the decoder's fine parts are bfloat16.
    """
    if dtype == "auto":
        tokenizer = tokenizer.to(device, torch.float32).eval().requires_grad_(False)
        if device.type == "cuda":
            narrow(tokenizer)  # type: ignore[arg-type]
        return tokenizer
    precision = dtype if isinstance(dtype, torch.dtype) else pick_dtype(dtype, device)
    return tokenizer.to(device, precision).eval().requires_grad_(False)


def narrow(tokenizer: Decoder) -> None:
    """Let the fine parts of a decoder run in bfloat16 with channels last; it is changed in place and kept once.

    Each of five levels adds about the same error to an image, but the last two do seven tenths of the work. So the
    others stay in float32 (three narrow levels were 1.1 grey levels off on an H200: experiments/LOG.md), and so do the
    statistics and weights of norms and the layer of the pixels, since bfloat16 has steps of half a grey level.
    """
    *fine, last = tokenizer.fine_parts()
    inside = {module for part in fine for module in part.modules()}
    for parent in list(tokenizer.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.GroupNorm and child in inside:
                setattr(parent, name, ChannelsLastNorm(child))
    for module in inside:
        if not isinstance(module, nn.GroupNorm) and not list(module.children()):
            module.to(dtype=torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for part in (fine[0], last):
        part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        part.register_forward_pre_hook(_like_weights)


class ChannelsLastNorm(nn.GroupNorm):
    """`nn.GroupNorm` in the dtype and memory format of its input, computed in float32.

    torch's own would copy the maps to channels first on CUDA and needs weights of the input's dtype.
    """

    def __init__(self, norm: nn.GroupNorm):
        super().__init__(norm.num_groups, norm.num_channels, norm.eps, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        self.train(norm.training)

    def forward(self, input: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        space = tuple(range(2, input.ndim))
        # Channel by channel first: reading along channels is what is fast if these come last.
        mean = self._of_groups(input.mean(space, dtype=torch.float32))
        norm = torch.linalg.vector_norm(input, dim=space, dtype=torch.float32)
        square = self._of_groups(norm.square() / input[0, 0].numel())
        scale = (square - mean.square()).clamp(min=0).add(self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        scale, shift = (x.view(*x.shape, *(1 for _ in space)) for x in (scale, shift))
        # Written as it is rounded: a float32 map between would cost twice the time.
        return torch.addcmul(shift, input, scale, out=torch.empty_like(input))

    def _of_groups(self, values: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        """Return each channel's mean over its group."""
        means = values.unflatten(1, (self.num_groups, -1)).mean(-1)
        return means.repeat_interleave(self.num_channels // self.num_groups, 1)


def _like_weights(part: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a part's arguments, with the maps in the dtype of its convolutions."""
    return args[0].to(_dtype(part), memory_format=torch.channels_last), *args[1:]


def _dtype(part: nn.Module) -> torch.dtype:
    return next(weight for weight in part.parameters() if weight.ndim == 4).dtype


def image_bytes(tokenizer: Decoder, grid: tuple[int, int]) -> int:
    """Return the bytes that decoding holds for each image, in the precision of its fine parts."""
    pixels = grid[0] * grid[1] * tokenizer.stride**2
    return MAPS * tokenizer.pixel_channels * _dtype(tokenizer.fine_parts()[0]).itemsize * pixels


def decode(tokenizer: Decoder, tokens: Tokens, grid: tuple[int, int]) -> Images:
    """Decode int64 tokens to images, as many at a time as fit into `BYTES`, at least one.

    Every image depends on its own tokens only. At another batch size convolutions may sum in another order; a value may
    then differ by one grey level.
    """
    size = max(1, BYTES // image_bytes(tokenizer, grid))
    return torch.cat([tokenizer.to_images(part, grid) for part in tokens.split(size)])


def fingerprint(tokenizer: Decoder) -> str:
    """Return a short hash of the tokenizer's weights and, if the decoder has two precisions, of these."""
    first, last = (_dtype(tokenizer.fine_parts()[i]) for i in (0, -1))
    return tensors_hash(tokenizer.state_dict(), *([] if first == last else [f"{first} maps"]))


class Tokenized:
    """Decoding, tokenizing and fingerprints of a base with an image tokenizer."""

    spec: BaseSpec
    device: torch.device
    tokenizer: Any
    linear: LinearKind

    def decode(self, tokens: Tokens) -> Images:
        return decode(self.tokenizer, tokens, self.spec.grid)

    def tokenize(self, images: Images) -> Tokens:
        refuse_other_size(images, self.spec, self.tokenizer.stride)
        return self.tokenizer.to_tokens(images.to(self.device))

    def plain_fingerprint(self) -> str:
        """Return the fingerprint of the same base with plain linears."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        return with_linear(self.plain_fingerprint(), self.linear)

    @functools.cache  # noqa: B019  a base lives as long as its command
    def decoder_fingerprint(self) -> str:
        return fingerprint(self.tokenizer)
