"""Compare guided logits of predicted and true features at masked positions, a few positions at a time."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from migm.bases.base import Base, image_rows
from migm.runtime.compiling import Fast, as_it_is
from migm.runtime.shapes import Features, Positions
from migm.sampling.agreement import MOST_LOGITS, Sums, divergence, log_probabilities, means
from migm.sampling.guidance import Guidance, On, Scale, scale_at
from migm.sampling.loop import logits_of
from migm.training.rollout import Situation, predict
from migm.training.terms.term import Distributions, GuidedTerm
from migm.trajectories.dataset import Pairs, padded_positions

Totals = list[Sequence[Tensor]]  # the sums of every term
FIDELITY = ("kl", "entropy", "equal_top", "marginal_entropy")


class Sites(NamedTuple):
    """Rows of both features at masked positions of every image; a part of them is a slice of all but the scale."""

    predicted: Sequence[Float[Tensor, "b k c"]]  # of each guidance half
    true: Sequence[Float[Tensor, "b k c"]]
    positions: Positions
    masked: Bool[Tensor, "b k"]  # False at padding
    wait: Int[Tensor, "b k"]
    scale: Scale
    on: On

    @classmethod
    def of(
        cls, base: Base, batch: Pairs, now: Situation, predicted: Features, target: Features, by: Guidance | None
    ) -> "Sites":
        """Return the rows of a batch whose halves are together, at the steps of `now`."""
        copies = batch.halves_together
        images = len(now.tokens) // copies
        branch, masked, steps = replace(now.branch, copies=copies), now.masked[:images], now.steps[:images]
        positions, inside = padded_positions(masked, max(batch.most_masked, 1))
        order = torch.zeros_like(now.tokens) if batch.order is None else batch.order
        wait = order[:images].gather(1, positions) - steps[:, None]
        ours, true = (image_rows(x.to(base.dtype), branch, positions).chunk(copies) for x in (predicted, target))
        scale = scale_at(by, steps[:, None], batch.num_steps)
        return cls(ours, true, positions, inside, wait, scale, "features" if by is None else by.on)

    def part(self, first: int, size: int) -> "Sites":
        """Return `size` positions from number `first` on."""
        cut = slice(first, first + size)
        ours, true = ([half[:, cut] for half in halves] for halves in (self.predicted, self.true))
        positions, masked, wait = (x[:, cut] for x in (self.positions, self.masked, self.wait))
        return self._replace(predicted=ours, true=true, positions=positions, masked=masked, wait=wait)


def distributions(base: Base, sites: Sites) -> Distributions:
    """Return the distributions of true and predicted features in at least float32, the true ones without gradients."""

    def made(halves: Sequence[Float[Tensor, "b k c"]]) -> Float[Tensor, "b k v"]:
        return log_probabilities(logits_of(base, halves, sites.positions, sites.on, sites.scale))

    with torch.no_grad():
        true = made(sites.true)
    return Distributions(true, made(sites.predicted), sites.masked, sites.wait)


def sums_at(terms: Sequence[GuidedTerm], base: Base, sites: Sites) -> Totals:
    """Return the sums of every term over these positions, as a function that is compiled."""
    seen = distributions(base, sites)
    return [term.sums(seen) for term in terms]


def totals(terms: Sequence[GuidedTerm], base: Base, sites: Sites, fast: Fast = as_it_is) -> Totals:
    """Return the sums of every term over all positions.

    Logits of few positions are in memory at a time, forward and backward: `MOST_LOGITS` values in a tensor of them.
    Where that takes several parts, a backward pass computes each part's logits again.
    """
    b, k = sites.positions.shape
    size = max(1, MOST_LOGITS // (b * base.spec.vocab_size))
    found: Totals = []
    with torch.autocast(base.device.type, enabled=False):  # a training's autocast is for the shortcut alone
        run = fast(sums_at)
        if size < k and torch.is_grad_enabled():
            run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
        for first in range(0, k, size):
            added: Totals = run(terms, base, sites.part(first, size))  # type: ignore[assignment]
            found = plus(found, added) if found else added
    return found


def plus(totals: Totals, added: Totals) -> Totals:
    """Return the totals with what was added to each."""
    return [[a + b for a, b in zip(*both, strict=True)] for both in zip(totals, added, strict=True)]


class Agreement:
    """The measures of the analysis `fidelity`, as sums."""

    weight = 0.0

    def sums(self, seen: Distributions) -> Sums:
        return divergence(seen.true, seen.predicted, seen.masked)

    def value(self, sums: Sequence[Tensor], masked: Int[Tensor, " b"]) -> Float[Tensor, " m"]:
        """Return the means over images of the measures `FIDELITY`, each of which is a mean over an image's rows."""
        return means(Sums(*sums), masked.clamp(min=1).double()).mean(0)


@torch.no_grad()
def fidelity(
    shortcut: nn.Module, base: Base, batch: Pairs, guidance: Guidance | None, fast: Fast = as_it_is
) -> dict[str, Tensor]:
    """Return the measures of the analysis `fidelity` one step after true features, as means over images and steps."""
    now = Situation.of(batch, base)
    predicted = fast(predict)(shortcut, base, now)
    sites = Sites.of(base, batch, now, predicted, batch.target, guidance)
    measure = Agreement()
    (sums,) = totals([measure], base, sites, fast)
    values = measure.value(sums, sites.masked.sum(1))
    return {f"fidelity_{name}": value for name, value in zip(FIDELITY, values.unbind(), strict=True)}
