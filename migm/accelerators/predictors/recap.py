"""ReCAP: cheap steps compute the rows that will be revealed soon, with the keys and values of a full step."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from migm.accelerators.runners import KeyValues, RowFeatures
from migm.bases.base import Branch, Moment
from migm.bases.layers import LayerBase, Runner
from migm.bases.segments import distinct_rows, image_span, other_rows


@dataclass(frozen=True)
class Target:
    """Grouped decoding with context reuse (arXiv 2505.19089; docs/originals/methods.md, ReCAP).

    The scores of a full step rank the positions that are revealed until the next full step. The local steps between
    compute the rows of these positions, revealed or not, and draw at the next positions in rank; all other rows keep
    the full step's keys and values. `recompute_condition` also computes the rows outside the image: the class row, as
    the published code for MaskGIT does, or the prompt.
    """

    recompute_condition: bool = False

    ranks_ahead: ClassVar[bool] = True

    def start(self, base: LayerBase, branch: Branch) -> "_Local":
        return _Local(base, branch, self.recompute_condition)


class _Local:
    rows: Tensor  # (copies * b, m), to be revealed until the next full step
    keep: Tensor | None = None  # (copies * b, m), False at rows that only fill up to m; None: no such rows

    def __init__(self, base: LayerBase, branch: Branch, recompute_condition: bool):
        self.base, self.branch, self.recompute_condition = base, branch, recompute_condition
        self.store, self.kept, self.span = KeyValues(), RowFeatures(base), image_span(branch)
        self.others: Tensor | None = None  # (copies * b, p), rows outside the image that are computed too

    def runner(self, step: int) -> Runner:
        return self.kept.watched(self.store.run)

    def update(self, step: int, features: Tensor) -> None:
        self.kept.features = features
        if self.recompute_condition and self.others is None:
            self.others = other_rows(self.span, self.store.num_rows)

    def target(self, positions: Tensor) -> None:
        self.rows = self.branch.in_blocks.gather(1, positions.repeat(self.branch.copies, 1))
        if self.base.spec.positions_per_row > 1:
            self.rows, self.keep = distinct_rows(self.rows, self.span, self.store.num_rows)
        if self.others is not None:
            self.rows = torch.cat([self.rows, self.others], 1)
            if self.keep is not None:
                self.keep = torch.cat([self.keep, torch.ones_like(self.others, dtype=torch.bool)], 1)

    def predict(self, step: int, tokens: Tensor, new_positions: Tensor, moment: Moment) -> Tensor:
        # Every local step writes new keys and values for the target rows before reading them.
        x, ctx = self.base.prepare(tokens, self.branch, moment, self.rows)
        out = self.store.run_rows(self.base.blocks, x, ctx, self.rows, self.keep)
        return self.kept.renew(out, ctx, self.rows, self.keep)
