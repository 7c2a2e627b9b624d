"""ML-Cache: cheap steps compute the rows that the base is least sure of, against stored keys and values."""

import numpy as np
import torch
from torch import Tensor

from migm.accelerators.runners import KeyValues, put
from migm.bases.base import Branch
from migm.bases.layers import LayerBase, Runner
from migm.runtime.kinds import Share


class Subset:
    """Lumina-DiMOO's max-logit cache (docs/originals/dimoo.md, Max-logit cache).

    Of all rows of a sequence (prompt and markers too) a cheap step computes those whose largest
    image logit was lowest at the step before, all but a share `cache_ratio`; new tokens are seen by
    the others only as far as they are among them. The rest of the features stays as it was.

    Two options are not the original's: `image_rows_only` chooses among the image tokens alone, and
    `force_new` computes the tokens revealed by the step before besides.
    """

    def __init__(self, cache_ratio: Share, force_new: bool = False, image_rows_only: bool = False):
        self.cache_ratio, self.force_new, self.image_rows_only = cache_ratio, force_new, image_rows_only

    def start(self, base: LayerBase, branch: Branch) -> "_Partial":
        return _Partial(base, branch, self)


class _Partial:
    features: Tensor
    confidence: Tensor | None  # (copies * b, t), None until it is asked for
    allowed: Tensor | None = None  # (copies * b, t) rows to choose among; None: all

    def __init__(self, base: LayerBase, branch: Branch, settings: Subset):
        self.base, self.branch, self.settings = base, branch, settings
        self.store = KeyValues()
        self.lengths: list[int] = []  # how many rows there are to choose among, in each sequence or in all

    def runner(self, step: int) -> Runner:
        return self.store.run

    def update(self, step: int, features: Tensor) -> None:
        if not self.lengths:
            self._survey(features)
        self.features, self.confidence = features, None

    def predict(self, step: int, tokens: Tensor, new_positions: Tensor, mask_ratio: Tensor) -> Tensor:
        if self.confidence is None:
            self.confidence = self._confidence(self.features)
        rows, keep = self._rows(self.confidence, new_positions)
        x, ctx = self.base.prepare(tokens, self.branch, mask_ratio, rows)
        new = self.base.finalize(self.store.run_rows(self.base.blocks, x, ctx, rows, keep))
        self.features = self.features.clone()  # observers may hold the last ones
        put(self.features, rows, new, keep)
        put(self.confidence, rows, self._confidence(new, rows), keep)
        return self.features

    def _survey(self, features: Tensor) -> None:
        """Which rows there are to choose among, from the first full step on."""
        branch = self.branch
        if self.settings.image_rows_only:
            self.allowed = torch.zeros(features.shape[:2], dtype=torch.bool, device=features.device)
            self.allowed = self.allowed.scatter(1, branch.rows, True)
            self.lengths = [branch.rows.shape[1]]
        else:
            self.allowed = branch.mask
            self.lengths = [features.shape[1]] if branch.mask is None else branch.mask.sum(1).tolist()
        chosen = [num_rows(length, self.settings.cache_ratio) for length in self.lengths]
        self.own = torch.tensor([chosen, self.lengths], device=features.device)
        self.most = list(zip(chosen, self.lengths, strict=True))

    def _confidence(self, features: Tensor, rows: Tensor | None = None) -> Tensor:
        """The largest image logit of the rows (b, n), or of all."""
        return self.base.head(features, rows=rows).amax(-1)

    def _rows(self, confidence: Tensor, new_positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """The rows (b, n) of the lowest confidence (b, t), n being that of the longest sequence.

        And (b, n) False beyond a shorter sequence's own number of them, None where all have as many.
        """
        forced = new_positions.shape[1] if self.settings.force_new else 0
        known = confidence if self.allowed is None else confidence.masked_fill(~self.allowed, float("inf"))
        if forced:
            new_rows = self.branch.rows.gather(1, new_positions.repeat(self.branch.copies, 1))
            known = known.scatter(1, new_rows, -float("inf"))
        n = max(min(count + forced, length) for count, length in self.most)
        rows = known.sort(dim=1, stable=True).indices[:, :n]
        if len(self.lengths) == 1:
            return rows, None
        counts, lengths = self.own
        return rows, torch.arange(n, device=rows.device) < torch.minimum(counts + forced, lengths)[:, None]


def num_rows(length: int, cache_ratio: float) -> int:
    """How many of `length` rows a cheap step computes: those up to the quantile 1 - c, floor((t - 1)(1 - c)) + 1.

    The rank is rounded to float32, as in the quantile of the original: in float64, 1 - 0.9 is below 0.1.
    """
    return int(np.float32(1 - cache_ratio) * np.float32(length - 1)) + 1
