"""ML-Cache: cheap steps compute the rows of lowest confidence, with stored keys and values for the others."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from migm.accelerators.runners import KeyValues, RowFeatures, put
from migm.bases.base import Branch, Moment, image_rows, take
from migm.bases.layers import LayerBase, Runner
from migm.bases.segments import image_span
from migm.runtime.kinds import Share


@dataclass(frozen=True)
class Subset:
    """Lumina-DiMOO's max-logit cache (docs/originals/dimoo.md, Max-logit cache).

    The share `cache_ratio` of a sequence's rows, prompt and markers included, is left out at a cheap step. The rows
    with the lowest values of their largest image logit, as last computed, are computed. Other rows see a new token only
    if its row is among the computed ones. The features of the other rows stay unchanged.

    Two options are not in the original: `image_rows_only` chooses among the image tokens alone, and `force_new` also
    computes the tokens that the step before revealed.
    """

    cache_ratio: Share
    force_new: bool = False
    image_rows_only: bool = False

    def start(self, base: LayerBase, branch: Branch) -> "_Partial":
        return _Partial(base, branch, self)


class _Partial:
    confidence: Tensor | None  # (copies * b, t), None until first used
    allowed: Tensor | None = None  # (copies * b, t), True at rows that may be chosen; None: all

    def __init__(self, base: LayerBase, branch: Branch, settings: Subset):
        self.base, self.branch, self.settings = base, branch, settings
        self.shared = base.spec.positions_per_row
        self.store, self.kept = KeyValues(), RowFeatures(base)
        self.limits = torch.empty(2, 0, dtype=torch.long)  # rows to compute and to choose among, if sequences differ
        self._choose_among(self._lengths())  # before the loop, since the host may have to wait

    def runner(self, step: int) -> Runner:
        return self.kept.watched(self.store.run)

    def update(self, step: int, features: Tensor) -> None:
        if self.allowed is None:
            self._survey(len(features), features.device)
        self.kept.features, self.confidence = features, None

    def predict(self, step: int, tokens: Tensor, new_positions: Tensor, moment: Moment) -> Tensor:
        if self.confidence is None:
            self.confidence = self._confidence(self.kept.features)
        rows, keep = self._rows(self.confidence, new_positions)
        x, ctx = self.base.prepare(tokens, self.branch, moment, rows)
        features = self.kept.renew(self.store.run_rows(self.base.blocks, x, ctx, rows, keep), ctx, rows, keep)
        if self.kept.whole:
            self.confidence = self._confidence(features)
        else:
            put(self.confidence, rows, self._confidence(take(features, rows), rows), keep)
        return features

    def _lengths(self) -> list[int]:
        """Return the number of rows that may be chosen, of each sequence or of all; none as long as it is unknown."""
        branch = self.branch
        if self.settings.image_rows_only:
            own = self.shared == 1 and branch.block_rows is None  # whether each position has a row of its own
            return [branch.rows.shape[1] if own else image_span(branch).shape[1]]
        return [] if branch.mask is None else branch.mask.sum(1).tolist()

    def _choose_among(self, lengths: list[int]) -> None:
        chosen = [num_rows(length, self.settings.cache_ratio) for length in lengths]
        self.most = list(zip(chosen, lengths, strict=True))
        if len(lengths) > 1:
            self.limits = torch.tensor([chosen, lengths], device=self.branch.rows.device)

    def _survey(self, sequences: int, device: torch.device) -> None:
        """Note the rows that may be chosen, after a full step."""
        if self.settings.image_rows_only:
            none = torch.zeros(sequences, self.store.num_rows, dtype=torch.bool, device=device)
            self.allowed = none.scatter(1, self.branch.in_blocks, True)
        elif self.branch.mask is not None:
            self.allowed = self.branch.mask
        elif not self.most:
            self._choose_among([self.store.num_rows])

    def _confidence(self, features: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the largest image logit of the blocks' rows (b, n), by default of all.

        A row that holds several tokens counts as the least confident of them.
        """
        if self.branch.block_rows is None:
            largest = self.base.head(features, rows=rows).amax(-1)
            return largest.amin(-1) if self.shared > 1 else largest
        of_tokens = self.base.head(image_rows(features, self.branch)).amax(-1)
        least = of_tokens.new_full((len(features), self.store.num_rows), float("inf"))
        return least.scatter_reduce(1, self.branch.block_rows, of_tokens, "amin")

    def _rows(self, confidence: Tensor, new_positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the rows (b, n) of the lowest confidence (b, t), and a mask (b, n), or None.

        n is the number for the longest sequence. The mask is False beyond the number of a shorter sequence; it is None
        if all sequences have equally many rows to choose from.
        """
        forced = new_positions.shape[1] if self.settings.force_new else 0
        scores = confidence if self.allowed is None else confidence.masked_fill(~self.allowed, float("inf"))
        if forced:
            new_rows = self.branch.in_blocks.gather(1, new_positions.repeat(self.branch.copies, 1))
            scores = scores.scatter(1, new_rows, -float("inf"))
        n = max(min(count + forced, length) for count, length in self.most)
        rows = scores.sort(dim=1, stable=True).indices[:, :n]
        if len(self.most) == 1:
            return rows, None
        counts, lengths = self.limits
        return rows, torch.arange(n, device=rows.device) < torch.minimum(counts + forced, lengths)[:, None]


def num_rows(length: int, cache_ratio: float) -> int:
    """Return how many of t = `length` rows a cheap step computes, with c = `cache_ratio`: floor((t - 1)(1 - c)) + 1.

    These are the rows up to the quantile 1 - c. The rank is rounded to float32, as in the original's quantile: in
    float64, 1 - 0.9 is below 0.1.
    """
    return int(np.float32(1 - cache_ratio) * np.float32(length - 1)) + 1
