"""Compare distributions of tokens: divergence, entropy, most likely tokens, and their means."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MOST_LOGITS = 2**24  # values in one tensor of logits


class Sums(NamedTuple):
    """Sums over rows, made by `divergence`."""

    kl: Float[Tensor, " b"]
    entropy: Float[Tensor, " b"]
    equal: Float[Tensor, " b"]
    marginals: Float[Tensor, "2 b v"]


def log_probabilities(logits: Float[Tensor, "b k v"]) -> Float[Tensor, "b k v"]:
    """Return the logarithms of the distributions that logits give, in at least float32."""
    return (logits.float() if logits.dtype.itemsize < 4 else logits).log_softmax(-1)


def divergence(
    true: Float[Tensor, "b k v"], predicted: Float[Tensor, "b k v"], counted: Bool[Tensor, "b k"] | None = None
) -> Sums:
    """Compare distributions, given by logarithms of probabilities, and add up over the rows k of an image.

    Returns (b,) KL(true, predicted), entropy of the predicted ones less that of the true ones, and number of equal top
    tokens; then the sums (2, b, v) of the true and the predicted distributions. All are float64. Only rows that are
    `counted` count, by default all.
    """
    p, q = true.exp(), predicted.exp()
    equal = true.argmax(-1) == predicted.argmax(-1)
    if counted is not None:
        p, q = (x * counted[..., None] for x in (p, q))
        equal = equal & counted
    kl = (p * (true - predicted)).sum((1, 2))
    entropy = (p * true).sum((1, 2)) - (q * predicted).sum((1, 2))
    return Sums(kl.double(), entropy.double(), equal.sum(1).double(), torch.stack([p.sum(1), q.sum(1)]).double())


def means(sums: Sums, rows: Float[Tensor, " b"] | int) -> Float[Tensor, "b 4"]:
    """Return, from sums over an image's `rows`, KL, entropy, equal top tokens and the entropy of the marginal.

    Entropies are the predicted ones less the true ones.
    """
    kl, entropy, equal, marginals = sums
    per_row = [kl / rows, entropy / rows, equal / rows]
    of_true, of_predicted = torch.special.entr(marginals / (rows if isinstance(rows, int) else rows[:, None])).sum(-1)
    return torch.stack([*per_row, of_predicted - of_true], 1)
