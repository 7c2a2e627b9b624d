"""ReCAP: cheap steps compute the rows about to be revealed, against the keys and values of a full step."""

import torch
from torch import Tensor

from migm.accelerators.runners import KeyValues, put
from migm.bases.base import Branch
from migm.bases.layers import LayerBase, Runner
from migm.bases.segments import other_rows


class Target:
    """Grouped decoding with context reuse (arXiv 2505.18597; docs/originals/methods.md, ReCAP).

    A full step ranks what will be revealed until the next one by its own scores; the local steps
    compute these rows, revealed or not, while all others keep the full step's keys and values, and draw
    at the next positions in rank. `recompute_condition` computes the rows beside the image anew as
    well: the class row, as the published code for MaskGIT does, or the prompt.
    """

    ranks_ahead = True

    def __init__(self, recompute_condition: bool = False):
        self.recompute_condition = recompute_condition

    def start(self, base: LayerBase, branch: Branch) -> "_Local":
        return _Local(base, branch, self.recompute_condition)


class _Local:
    features: Tensor
    rows: Tensor  # (copies * b, m) of the targets

    def __init__(self, base: LayerBase, branch: Branch, recompute_condition: bool):
        self.base, self.branch, self.recompute_condition = base, branch, recompute_condition
        self.store = KeyValues()
        self.others: Tensor | None = None  # (copies * b, p) rows beside the image, if they are computed anew

    def runner(self, step: int) -> Runner:
        return self.store.run

    def update(self, step: int, features: Tensor) -> None:
        self.features = features
        if self.recompute_condition and self.others is None:
            self.others = other_rows(self.branch, features.shape[1])

    def target(self, positions: Tensor) -> None:
        self.rows = self.branch.rows.gather(1, positions.repeat(self.branch.copies, 1))
        if self.others is not None:
            self.rows = torch.cat([self.rows, self.others], 1)

    def predict(self, step: int, tokens: Tensor, new_positions: Tensor, mask_ratio: Tensor) -> Tensor:
        # The targets' own keys and values are written over in every local step before they are read.
        x, ctx = self.base.prepare(tokens, self.branch, mask_ratio, self.rows)
        new = self.base.finalize(self.store.run_rows(self.base.blocks, x, ctx, self.rows))
        self.features = self.features.clone()  # observers may hold the last ones
        put(self.features, self.rows, new)
        return self.features
