"""The divergence of guided token distributions."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from migm.runtime.kinds import Count, NotNegative
from migm.runtime.shapes import Scalar
from migm.training.terms.term import Distributions, divergences, over_rows


@dataclass(frozen=True)
class GuidedKL:
    """KL(true || predicted) of guided logits in nats, mean over masked rows (docs/objectives.md).

    Rows that the trajectory reveals within `steps_ahead` steps count by 1, the others by `floor`; the weights of an
    image are scaled to sum to its number of masked rows. After a roll-out, whose tokens are others, rows that the
    trajectory would have revealed already are about to be revealed too.
    """

    weight: NotNegative = 0.1
    floor: NotNegative = 1.0
    steps_ahead: Count = 1

    def sums(self, seen: Distributions) -> Sequence[Float[Tensor, " b"]]:
        soon = (seen.wait < self.steps_ahead).float()
        weights = (soon + self.floor * (1 - soon)) * seen.masked
        return (divergences(seen) * weights).sum(1), weights.sum(1)

    def value(self, sums: Sequence[Float[Tensor, " b"]], masked: Int[Tensor, " b"]) -> Scalar:
        divergence, weights = sums
        return over_rows(divergence / weights.where(weights > 0, 1), masked)
