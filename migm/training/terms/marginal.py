"""The distance between an image's mean distributions of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from migm.runtime.kinds import NotNegative
from migm.runtime.shapes import Scalar
from migm.training.terms.term import Distributions, entropy, over_rows


@dataclass(frozen=True)
class Marginal:
    """KL(true || predicted) of mean guided distributions, and the squared difference of their entropies.

    The mean is over the masked positions of an image at a step, so that it is the distribution of its tokens
    (docs/objectives.md). The entropies, in nats, count by `entropy_weight`; an image counts by its masked rows.
    """

    weight: NotNegative = 1.0
    entropy_weight: NotNegative = 1.0

    def sums(self, seen: Distributions) -> Sequence[Float[Tensor, "b v"]]:
        inside = seen.masked[..., None]
        return (seen.true.exp() * inside).sum(1), (seen.predicted.exp() * inside).sum(1)

    def value(self, sums: Sequence[Float[Tensor, "b v"]], masked: Int[Tensor, " b"]) -> Scalar:
        true, predicted = (total / masked[:, None].clamp(min=1) for total in sums)
        smallest = torch.finfo(true.dtype).tiny
        divergence = -entropy(true) - (true * predicted.clamp(min=smallest).log()).sum(-1)
        wider = entropy(predicted) - entropy(true)
        return over_rows(divergence + self.entropy_weight * wider.square(), masked)
