"""Decide which of the masked positions a step may reveal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor

from migm.accelerators.order import Order
from migm.bases.base import BaseSpec
from migm.runtime.shapes import Positions
from migm.sampling.noise import Noise


class Ordering(Protocol):
    """A rule that makes the order of a generation; a frozen dataclass."""

    def start(self, spec: BaseSpec, counts: Sequence[int], noise: Noise) -> Order:
        """Return the order of a generation whose steps reveal `counts` of the positions of a base."""
        ...


@dataclass(frozen=True)
class AllMasked:
    """Offer every masked position at every step: tokens are drawn first, then chosen by score (MaskGIT and DiMOO)."""

    def start(self, spec: BaseSpec, counts: Sequence[int], noise: Noise) -> "AllMasked":
        return self

    def candidates(self, step: int, masked: Positions, count: int) -> Int[Tensor, "b _"]:
        return masked

    def scored(self, step: int, scores: Float[Tensor, "b k"], positions: Positions, chosen: Int[Tensor, "b _"]) -> None:
        """Remember nothing."""
