"""Tokens to images in bounded memory, whatever the batch."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

BYTES = 2 * 1024**3  # that decoding may hold at once, beyond tokens and images
MAPS = 5  # of the widest maps are held together: 2,568 bytes a pixel were measured at 128 channels in float32


class Decoder(Protocol):
    """The half of a tokenizer that draws."""

    stride: int  # pixels a token, along both sides
    pixel_channels: int  # of the widest maps, over the pixels of the image

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def to_images(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """int64 tokens (b, l) -> uint8 images (b, 3, h, w)."""
        ...


def image_bytes(tokenizer: Decoder, grid: tuple[int, int]) -> int:
    """Bytes that decoding holds for each image."""
    pixels = grid[0] * grid[1] * tokenizer.stride**2
    return MAPS * tokenizer.pixel_channels * next(tokenizer.parameters()).element_size() * pixels


def decode(tokenizer: Decoder, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """int64 tokens (b, l) -> uint8 images (b, 3, h, w), so many at a time as `BYTES` hold, and one at least.

    Every image is that of its own tokens. Where convolutions sum in another order at another batch size,
    a value may differ by one grey level from that of the whole batch, as it may between batch sizes.
    """
    size = max(1, BYTES // image_bytes(tokenizer, grid))
    return torch.cat([tokenizer.to_images(part, grid) for part in tokens.split(size)])
