"""A table of segment errors on disk: one line for each trajectory, so that other plans need no measuring again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from migm.analyses.segments import SEGMENT_ERRORS
from migm.runtime.errors import UserError
from migm.runtime.jsonl import append_lines, read_lines

FORMAT = "migm-segments/1"
DIGITS = 5  # of a written error


@dataclass(frozen=True)
class SegmentTable:
    """A JSON-lines file: what was measured, then the errors of one image a line, in the order of `segments`.

    `about` tells tables apart: base, sampling, predictor, N, memory, longest gap, inputs and seed. A file about
    something else is refused, by the `key` that names it.
    """

    path: Path
    about: dict[str, Any]
    key: str

    def missing(self, images: Sequence[int]) -> list[int]:
        """Return those of the images that are not in the file; UserError for a file about something else."""
        known = {line["image"] for line in self._lines()}
        return [image for image in images if image not in known]

    def append(self, images: Sequence[int], errors: Float[Tensor, "b s m"]) -> None:
        """Add the errors of images."""
        header = [] if self.path.exists() else [{"format": FORMAT, **self.about}]
        lines = [
            {"image": image, **{name: rounded(column) for name, column in zip(SEGMENT_ERRORS, values.T, strict=True)}}
            for image, values in zip(images, errors, strict=True)
        ]
        append_lines(self.path, [*header, *lines])

    def errors(self, images: Sequence[int]) -> dict[str, Float[Tensor, "i s"]]:
        """Return each of the `SEGMENT_ERRORS` of these images."""
        lines = {line["image"]: line for line in self._lines()}
        chosen = [lines[image] for image in images]
        return {name: torch.tensor([line[name] for line in chosen]).double() for name in SEGMENT_ERRORS}

    def _lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        lines = read_lines(self.path)
        header, others = (lines[0], lines[1:]) if lines else ({}, [])
        if header.get("format") != FORMAT:
            raise UserError(f"{self.key}: {self.path} is there, and is no table of segment errors; choose another name")
        for name, value in self.about.items():
            if header.get(name) != value:
                raise UserError(
                    f"{self.key}: {self.path} holds segment errors of {name}={header.get(name)}, this is {value}; "
                    "delete it, or choose another name"
                )
        return others


def rounded(values: Tensor) -> list[float]:
    """Return numbers with as many digits as are written."""
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]
