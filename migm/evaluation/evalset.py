"""Evaluation sets: labels or prompts, image numbers and seed sets."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from migm.bases.base import Inputs
from migm.bases.inputs import InputSource
from migm.runtime.files import content_hash
from migm.runtime.kinds import Count, Length, Limits, Seed


class EvalSet:
    """Images 0...num_images-1 of `inputs`, once for every seed set.

    `reference` is the file of statistics that distances are measured to.
    """

    def __init__(
        self,
        num_images: Annotated[int, Limits(least=2)],
        inputs: InputSource,
        seed_sets: Annotated[Sequence[Seed], Length()],
        batch_size: Count,
        reference: str | Path | None = None,
    ):
        self.num_images, self.inputs, self.batch_size = num_images, inputs, batch_size
        self.seed_sets, self.reference = list(seed_sets), reference

    def fingerprint(self) -> str:
        """Return a hash of the inputs, image by image."""
        asked = (inputs.tolist() if isinstance(inputs, Tensor) else inputs for _, inputs in self.batches())
        return content_hash("".join(json.dumps(part).strip("[]") + ", " for part in asked))

    def batches(self, first: int = 0, last: int | None = None) -> Iterator[tuple[Tensor, Inputs]]:
        """Yield image numbers (b,) with labels (b,) or b prompts, of all batches or of `first`...`last` - 1."""
        for images in torch.arange(self.num_images).split(self.batch_size)[first:last]:
            yield images, self.inputs(images)

    def share(self, rank: int, processes: int) -> range:
        """Return the batches of one process: consecutive numbers; the first ranks get the remainder."""
        size, remainder = divmod(-(-self.num_images // self.batch_size), processes)
        first = rank * size + min(rank, remainder)
        return range(first, first + size + (rank < remainder))
