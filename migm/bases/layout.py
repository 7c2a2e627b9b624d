"""Lumina-DiMOO's sequence: prompt, then rows of the image between markers (docs/originals/dimoo.md, Sequence)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PADDING = -1  # in conditions


@dataclass(frozen=True)
class Markers:
    """Ids of the tokens that are neither text nor image codes, under Lumina-DiMOO's names for them."""

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
    """The prompt (any length), then `num_rows` rows: two markers, h times w codes and a newline, two markers.

    Image codes c = 0...v-1 have the ids `offset` + c.
    """

    def __init__(self, grid: tuple[int, int], markers: Markers, offset: int, device: torch.device):
        height, width = grid
        places = torch.arange(height * width)
        self.places = (2 + places + places // width).to(device)
        self.num_rows = height * (width + 1) + 4
        block = torch.full((self.num_rows,), markers.newline)
        block[[0, 1, -2, -1]] = torch.tensor([markers.answer, markers.image, markers.end_image, markers.end_answer])
        self.block, self.offset, self.mask = block.to(device), offset, markers.mask

    def image_ids(self, tokens: Tensor, vocab_size: int) -> Tensor:
        """Tokens 0...v-1, v = masked -> ids of the vocabulary, of the same shape."""
        return (tokens + self.offset).where(tokens < vocab_size, self.mask)

    def sequence(self, condition: Tensor, lengths: Tensor, image_ids: Tensor, num_rows: int) -> Tensor:
        """Ids (b, t) of prompts (b, q) of the `lengths` (b,) and images (b, l), with 0 at padding; t = `num_rows`."""
        b, q = condition.shape
        ids = condition.new_zeros(b, num_rows)
        ids[:, :q] = condition.clamp(min=0)
        block = self.block.expand(b, -1).scatter(1, self.places.expand(b, -1), image_ids)
        # Shorter prompts are padded where their image block begins: it is written last.
        return ids.scatter(1, lengths[:, None] + torch.arange(self.num_rows, device=ids.device), block)


def padded_ids(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Lists of ids -> (b, q), filled up with -1 on the right."""
    ids = torch.full((len(rows), max(map(len, rows))), PADDING)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids.to(device)
