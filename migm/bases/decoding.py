"""Decode tokens to images in bounded memory, whatever the batch size."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import nn

from migm.runtime.shapes import Images, Tokens

BYTES = 2 * 1024**3  # limit of decoding, beyond tokens and images
MAPS = 5  # largest maps held together: 2,568 bytes a pixel were measured at 128 channels in float32


class Decoder(Protocol):
    """The decoder half of an image tokenizer."""

    stride: int  # pixels a token in each direction
    pixel_channels: int  # channels of the largest maps, over the pixels of the image

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def to_images(self, tokens: Tokens, grid: tuple[int, int]) -> Images: ...


def image_bytes(tokenizer: Decoder, grid: tuple[int, int]) -> int:
    """Return the bytes that decoding holds for each image."""
    pixels = grid[0] * grid[1] * tokenizer.stride**2
    return MAPS * tokenizer.pixel_channels * next(tokenizer.parameters()).element_size() * pixels


def decode(tokenizer: Decoder, tokens: Tokens, grid: tuple[int, int]) -> Images:
    """Decode int64 tokens to images, as many at a time as fit into `BYTES`, at least one.

    Every image depends on its own tokens only. At another batch size convolutions may sum in another order; a value may
    then differ by one grey level.
    """
    size = max(1, BYTES // image_bytes(tokenizer, grid))
    return torch.cat([tokenizer.to_images(part, grid) for part in tokens.split(size)])
