"""Decide which of the masked positions a step may reveal."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from migm.accelerators.order import Order
from migm.bases.base import BaseSpec
from migm.runtime.shapes import Positions
from migm.sampling.noise import ORDER, Noise


class Ordering(Protocol):
    """A rule that makes the order of a generation; a frozen dataclass.

    If the order is known before the first step, a method `ranks`, as Halton's, tells it to roll-outs of trainings.
    """

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


@dataclass(frozen=True)
class Halton:
    """Reveal positions in an order that spreads them evenly over the image (arXiv 2503.17076).

    The order is fixed, so that only what a step reveals is drawn, and scores decide nothing. With `roll` every image
    begins at a place of its own, by its noise, and goes on from the end to the start (docs/originals/halton.md, Order).
    """

    roll: bool = False

    def start(self, spec: BaseSpec, counts: Sequence[int], noise: Noise) -> "InTurn":
        return InTurn(self, spec, noise)

    def ranks(self, spec: BaseSpec, noise: Noise, like: Int[Tensor, "b _"]) -> Int[Tensor, "b l"]:
        """Return the place of every position in the order of each image; `like` has their number and device."""
        ranks = halton_ranks(spec.grid, like.device).expand(len(like), -1)
        if not self.roll:
            return ranks
        where = torch.zeros(len(like), 1, dtype=torch.long, device=like.device)
        shift = (noise.uniform(ORDER, 0, where) * spec.num_tokens).long()
        return (ranks + shift) % spec.num_tokens


class InTurn:
    """The masked positions of a generation in Halton's order."""

    def __init__(self, rule: Halton, spec: BaseSpec, noise: Noise):
        self.rule, self.spec, self.noise = rule, spec, noise
        self.ranks: Int[Tensor, "b l"] | None = None

    def candidates(self, step: int, masked: Positions, count: int) -> Int[Tensor, "b _"]:
        if self.ranks is None:
            self.ranks = self.rule.ranks(self.spec, self.noise, masked)
        ranks = self.ranks.gather(1, masked)
        return masked.gather(1, ranks.topk(count, largest=False).indices).sort(dim=1).values

    def scored(self, step: int, scores: Float[Tensor, "b k"], positions: Positions, chosen: Int[Tensor, "b _"]) -> None:
        """Remember nothing: the masked positions say where the order goes on."""


@functools.cache  # captured runs copy nothing from the host
def halton_ranks(grid: tuple[int, int], device: torch.device) -> Int[Tensor, " l"]:
    """Return the place of every position in Halton's order."""
    with torch.inference_mode(False):
        return halton_order(grid).argsort().to(device)


def halton_order(grid: tuple[int, int]) -> Int[Tensor, " l"]:
    """Return all positions of a grid in Halton's order.

    Point i = 1, 2, ... of the Halton sequence lies in row phi_2(i) h and column phi_3(i) w, where phi_b mirrors the
    digits of i in base b behind the point. A cell comes when the first point lies in it.
    """
    height, width = grid
    cells, count = height * width, 4 * height * width
    while True:
        points = torch.arange(1, count + 1)
        positions = mirrored(points, 2, height) * width + mirrored(points, 3, width)
        first = torch.full((cells,), count).scatter_reduce(0, positions, torch.arange(count), "amin")
        if int(first.max()) < count:
            return first.argsort()
        count *= 2


def mirrored(points: Int[Tensor, " n"], radix: int, size: int) -> Int[Tensor, " n"]:
    """Return floor(phi(i) size) of the points i, in whole numbers; phi is the radical inverse."""
    value, scale, rest = torch.zeros_like(points), 1, points
    while int(rest.max()):
        value, rest, scale = value * radix + rest % radix, rest // radix, scale * radix
    return value * size // scale
