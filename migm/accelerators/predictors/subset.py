"""ML-Cache: cheap steps compute the rows that the base is least sure of, against stored keys and values."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from migm.accelerators.layers import Block, KeyValues, LayerBase, put
from migm.bases.base import Base, Branch
from migm.runtime import UserError


class Subset:
    """Lumina-DiMOO's max-logit cache (dimoo.md section 4, methods.md section 1.3).

    Of all rows of a sequence (prompt and markers too) a cheap step computes those whose largest
    image logit was lowest at the step before, all but a share `cache_ratio`; new tokens are seen by
    the others only as far as they are among them. The rest of the features stays as it was.
    """

    def __init__(self, cache_ratio: float):
        if not 0 <= cache_ratio <= 1:
            raise UserError(f"accelerator.predictor.cache_ratio={cache_ratio} must be from 0 to 1")
        self.cache_ratio = cache_ratio

    def fingerprint(self, base: Base) -> str:
        return ""

    def start(self, base: LayerBase, branch: Branch) -> "_Partial":
        return _Partial(base, branch, self.cache_ratio)


class _Partial:
    features: Tensor
    confidence: Tensor | None  # (copies * b, t), None until it is asked for

    def __init__(self, base: LayerBase, branch: Branch, cache_ratio: float):
        self.base, self.branch, self.cache_ratio = base, branch, cache_ratio
        self.store = KeyValues()
        self.keep: Tensor | None = None  # (copies * b, n) False beyond a shorter sequence's own number of them
        if branch.mask is not None:
            counts = [num_rows(length, cache_ratio) for length in branch.mask.sum(1).tolist()]
            own = torch.tensor(counts, device=branch.mask.device)
            self.keep = torch.arange(max(counts), device=own.device) < own[:, None]

    def runner(self, blocks: Sequence[Block], x: Tensor, ctx: object) -> Tensor:
        return self.store.run(blocks, x, ctx)

    def update(self, step: int, features: Tensor) -> None:
        self.features, self.confidence = features, None

    def predict(self, step: int, tokens: Tensor, new_positions: Tensor, mask_ratio: Tensor) -> Tensor:
        if self.confidence is None:
            self.confidence = self._confidence(self.features)
        rows = self._rows(self.confidence)
        x, ctx = self.base.prepare(tokens, self.branch, mask_ratio)
        new = self.base.finalize(self.store.run_rows(self.base.blocks, x, ctx, rows, self.keep))
        self.features = self.features.clone()  # observers may hold the last ones
        put(self.features, rows, new, self.keep)
        put(self.confidence, rows, self._confidence(new), self.keep)
        return self.features

    def _confidence(self, features: Tensor) -> Tensor:
        """The largest image logit of every row (b, n)."""
        return self.base.head(features).amax(-1)

    def _rows(self, confidence: Tensor) -> Tensor:
        """The rows (b, n) of the lowest confidence (b, t), n being that of the longest sequence."""
        mask = self.branch.mask
        n = num_rows(confidence.shape[1], self.cache_ratio) if self.keep is None else self.keep.shape[1]
        known = confidence if mask is None else confidence.masked_fill(~mask, float("inf"))
        return known.sort(dim=1, stable=True).indices[:, :n]


def num_rows(length: int, cache_ratio: float) -> int:
    """How many of `length` rows a cheap step computes: those up to the quantile 1 - c, floor((t - 1)(1 - c)) + 1.

    The rank is rounded to float32, as in the quantile of the original: in float64, 1 - 0.9 is below 0.1.
    """
    return int(np.float32(1 - cache_ratio) * np.float32(length - 1)) + 1
