"""Lay out sequences: a prompt, then an image between markers (docs/originals/dimoo.md, Sequence)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PADDING = -1  # id at the padding of conditions


@dataclass(frozen=True)
class Markers:
    """Ids of the tokens that are neither text nor image codes, under Lumina-DiMOO's names."""

    mask: int
    newline: int
    answer: int  # <answer> and </answer> enclose <IMAGE> and </IMAGE>, which enclose the rows
    image: int
    end_image: int
    end_answer: int


NAMES = {
    "mask": "<|mdm_mask|>",
    "newline": "<|reserved_token_0|>",
    "answer": "<answer>",
    "image": "<IMAGE>",
    "end_image": "</IMAGE>",
    "end_answer": "</answer>",
}


class Layout:
    """A prompt of any length, then the `block`, in which image codes stand at `places` (l,) and the others are ids.

    Image code c = 0...v-1 has the id `offset` + c, a masked one the id `mask`.
    """

    def __init__(self, block: Tensor, places: Tensor, offset: int, mask: int, device: torch.device):
        self.block, self.places, self.offset, self.mask = block.to(device), places.to(device), offset, mask
        self.num_rows = len(block)

    def image_ids(self, tokens: Tensor, vocab_size: int) -> Tensor:
        """Map tokens 0...v-1, and v for masked, to ids of the vocabulary, of the same shape."""
        return (tokens + self.offset).where(tokens < vocab_size, self.mask)

    def sequence(self, condition: Tensor, lengths: Tensor, num_rows: int) -> Tensor:
        """Return ids (b, t) of prompts (b, q) of `lengths` (b,) and an image, 0 at padding; t = `num_rows`.

        The ids of the image are to be written to the rows lengths + `places`.
        """
        b, q = condition.shape
        ids = condition.new_zeros(b, num_rows)
        ids[:, :q] = condition.clamp(min=0)
        # The image block is written last, since the padding of shorter prompts lies where the block begins.
        rows = lengths[:, None] + torch.arange(self.num_rows, device=ids.device)
        return ids.scatter(1, rows, self.block.expand(b, -1))


def in_rows(grid: tuple[int, int], markers: Markers, offset: int, device: torch.device) -> Layout:
    """Return Lumina-DiMOO's layout: two markers, h lines of w codes and a newline, two markers."""
    height, width = grid
    places = torch.arange(height * width)
    block = torch.full((height * (width + 1) + 4,), markers.newline)
    block[[0, 1, -2, -1]] = torch.tensor([markers.answer, markers.image, markers.end_image, markers.end_answer])
    return Layout(block, 2 + places + places // width, offset, markers.mask, device)


def padded_ids(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Stack lists of ids as (b, q), padded with -1 on the right."""
    ids = torch.full((len(rows), max(map(len, rows))), PADDING)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids.to(device)
