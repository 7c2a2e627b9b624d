"""Orders decide which of the masked positions a step may reveal."""

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from migm.runtime.shapes import Positions


class Order(Protocol):
    """The order of one generation."""

    def candidates(self, step: int, masked: Positions, count: int) -> Int[Tensor, "b _"]:
        """Return positions, ascending, from the masked ones, ascending too; the step reveals `count` of them."""
        ...

    def scored(self, step: int, scores: Float[Tensor, "b k"], positions: Positions, chosen: Int[Tensor, "b _"]) -> None:
        """Receive the scores of the candidates and the indices of the revealed candidates."""
        ...


class Targeted(Protocol):
    """A predictor state that computes only the positions that will be revealed soon."""

    def target(self, positions: Positions) -> None:
        """Receive the positions revealed until the next full step, first those that this full step reveals."""
        ...


class RankedSets:
    """ReCAP's order: the scores of a full step rank the positions that the cheap steps after it reveal."""

    def __init__(self, plan: Sequence[bool], counts: Sequence[int], targeted: Sequence[Targeted]):
        self.plan, self.counts, self.targeted = plan, counts, targeted
        self.ranked: Int[Tensor, "b _"] | None = None  # left to reveal until the next full step

    def candidates(self, step: int, masked: Positions, count: int) -> Int[Tensor, "b _"]:
        if self.plan[step] or self.ranked is None:
            return masked
        chosen, self.ranked = self.ranked[:, :count], self.ranked[:, count:]
        return chosen.sort(dim=1).values

    def scored(self, step: int, scores: Float[Tensor, "b k"], positions: Positions, chosen: Int[Tensor, "b _"]) -> None:
        if not self.plan[step]:
            return
        end = next((i for i in range(step + 1, len(self.plan)) if self.plan[i]), len(self.plan))
        num_ranked = min(chosen.shape[1] + sum(self.counts[step + 1 : end]), positions.shape[1])
        first = scores.scatter(1, chosen, torch.inf)  # revealed positions first, then the best of the rest
        ranked = positions.gather(1, first.topk(num_ranked).indices)
        self.ranked = ranked[:, chosen.shape[1] :]
        for state in self.targeted:
            state.target(ranked)
