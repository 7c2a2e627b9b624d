"""Lumina-DiMOO's sequence: prompt, markers around the image, a newline after each row (dimoo.md section 2)."""

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from migm.bases.weights import locate
from migm.runtime import UserError

PADDING = -1  # in conditions
Encode = Callable[[str], list[int]]


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


class PromptTemplate:
    """Prompts -> ids of `<system>{system}</system><user>{prompt}</user>`, the empty prompt being `<uncondition>`."""

    def __init__(self, encode: Encode, system: str):
        self.encode, self.system = encode, system
        self.unconditional = self("<uncondition>")

    def __call__(self, prompt: str) -> list[int]:
        return self.encode(f"<system>{self.system}</system><user>{prompt}</user>")


def read_tokenizer(path: str | Path | None, markers: Markers, key: str) -> Encode:
    """The text tokenizer of a `tokenizer.json`, which adds no tokens of its own; other ids of markers are refused."""
    file = locate(path, key)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exceptions
        raise UserError(f"{key}={path} is no tokenizer.json ({error})") from error
    for marker, name in NAMES.items():
        found = tokenizer.token_to_id(name)
        if found not in (None, getattr(markers, marker)):
            raise UserError(f"base.markers.{marker}={getattr(markers, marker)}, but {name} is {found} in {key}={path}")
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def words_as_ids(num_ids: int) -> Encode:
    """A stand-in for models with random weights: every tag, word or sign is an id below `num_ids`, by its checksum."""
    return lambda text: [zlib.crc32(word.encode()) % num_ids for word in re.findall(r"</?\w+>|\w+|[^\w\s]", text)]


def padded_ids(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Lists of ids -> (b, q), filled up with -1 on the right."""
    ids = torch.full((len(rows), max(map(len, rows))), PADDING)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids.to(device)
