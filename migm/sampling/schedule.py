"""Mask schedules: how many tokens each of the N steps reveals, as N integers that sum to l."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

Mode = Literal["root", "linear", "square", "cosine", "arccos"]


class Schedule(Protocol):
    def counts(self, num_tokens: int, num_steps: int) -> list[int]: ...


@dataclass(frozen=True)
class Increments:
    """Counts proportional to a curve of r = linspace(1, 0, N), rounded half to even, at least 1.

    The curve gives increments, not the cumulative gamma(t) of the MaskGIT paper; the last step takes the rounding error
    (reference: valeoai/Maskgit-pytorch, `adap_sche`).
    """

    mode: Mode = "arccos"

    curves: ClassVar[dict[str, Callable[[Tensor], Tensor]]] = {
        "root": lambda r: 1 - r.sqrt(),
        "linear": lambda r: 1 - r,
        "square": lambda r: 1 - r**2,
        "cosine": lambda r: torch.cos(r * math.pi / 2),
        "arccos": lambda r: torch.arccos(r) / (math.pi / 2),
    }

    def counts(self, num_tokens: int, num_steps: int) -> list[int]:
        _check_steps(num_tokens, num_steps)
        if num_steps == 1:
            return [num_tokens]  # the curves start at 0, which cannot be normalised
        values = self.curves[self.mode](torch.linspace(1, 0, num_steps))
        steps = (values / values.sum() * num_tokens).round().clamp(min=1)
        steps[-1] += num_tokens - steps.sum()
        counts = steps.int().tolist()
        if counts[-1] < 1:
            raise ValueError(
                f"sampling.num_steps={num_steps} leaves no token for the last step of schedule {self.mode} "
                f"over {num_tokens} tokens; use fewer steps"
            )
        return counts


@dataclass(frozen=True)
class CosineFloor:
    """Leave max(1, floor(l cos(pi/2 (i+1)/N))) tokens masked after step i, none after the last (Lumina-DiMOO).

    With many steps some reveal nothing: with 36 or more for 256 tokens, with 143 or more for 4096. With `at_least_one`
    each of them reveals a token as long as more than one is masked (MMaDA, aMUSEd and Meissonic).
    """

    at_least_one: bool = False

    def counts(self, num_tokens: int, num_steps: int) -> list[int]:
        _check_steps(num_tokens, num_steps)
        # All in float32: for some N the product is an integer, and the rounding decides.
        t = torch.arange(1, num_steps + 1, dtype=torch.float32) / num_steps
        return _revealed(num_tokens, num_tokens * torch.cos(0.5 * math.pi * t), self.at_least_one)


@dataclass(frozen=True)
class LinearFloor:
    """Leave floor(l (1 - (i+1)/N)) tokens masked after step i (aMUSEd's in-painting)."""

    def counts(self, num_tokens: int, num_steps: int) -> list[int]:
        _check_steps(num_tokens, num_steps)
        t = torch.arange(1, num_steps + 1, dtype=torch.float32) / num_steps
        return _revealed(num_tokens, num_tokens * (1 - t), True)


def _revealed(num_tokens: int, left: Tensor, at_least_one: bool) -> list[int]:
    """Return how many tokens each step reveals if floor(`left`) and at least one stay masked, and none at the end."""
    masked = [num_tokens]
    for floor in torch.floor(left).long().tolist()[:-1]:
        masked.append(max(1, min(floor, masked[-1] - 1 if at_least_one else floor)))
    return [before - after for before, after in pairwise([*masked, 0])]


@dataclass(frozen=True)
class Totals:
    """Reveal trunc(l v(r)) tokens in total after step i, but at least i + 1 (Halton-MaskGIT).

    The curve v rises from 0 to 1, with r = (i + 1) / N, or with `from_zero` r = i / (N - 1), as the confidence sampler
    of the same code has it. With the arccos curve the last step reveals a sixth of the image at N = 32, a third at
    N = 8. With many steps the root curve's last ones may reveal nothing.
    """

    mode: Mode = "arccos"
    from_zero: bool = False

    curves: ClassVar[dict[str, Callable[[Tensor], Tensor]]] = {
        "root": lambda r: r.sqrt(),
        "linear": lambda r: r,
        "square": lambda r: r**2,
        "cosine": lambda r: 1 - torch.cos(r * math.pi / 2),
        "arccos": lambda r: 1 - torch.arccos(r) / (math.pi / 2),
    }

    def counts(self, num_tokens: int, num_steps: int) -> list[int]:
        _check_steps(num_tokens, num_steps)
        # All in float32: at some steps the product is a whole number, and the rounding decides.
        done = torch.arange(1, num_steps + 1)
        r = torch.linspace(0, 1, num_steps) if self.from_zero else done / num_steps
        totals = (num_tokens * self.curves[self.mode](r)).int().maximum(done)
        totals[-1] = num_tokens
        return torch.diff(totals, prepend=torch.tensor([0])).tolist()


def _check_steps(num_tokens: int, num_steps: int) -> None:
    if not 1 <= num_steps <= num_tokens:
        raise ValueError(f"sampling.num_steps={num_steps} must be between 1 and the {num_tokens} tokens of an image")
