"""Mask schedules: how many tokens each of the N steps reveals. All return N integers that sum to l."""

import math
from collections.abc import Callable
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

Mode = Literal["root", "linear", "square", "cosine", "arccos"]


class Schedule(Protocol):
    def counts(self, num_tokens: int, num_steps: int) -> list[int]: ...


class Increments:
    """Counts proportional to a curve of r = linspace(1, 0, N), rounded half to even, at least 1.

    These are increments, not the cumulative gamma(t) of the MaskGIT paper; the last step takes
    the rounding error (reference: valeoai/Maskgit-pytorch, `adap_sche`).
    """

    curves: ClassVar[dict[str, Callable[[Tensor], Tensor]]] = {
        "root": lambda r: 1 - r.sqrt(),
        "linear": lambda r: 1 - r,
        "square": lambda r: 1 - r**2,
        "cosine": lambda r: torch.cos(r * math.pi / 2),
        "arccos": lambda r: torch.arccos(r) / (math.pi / 2),
    }

    def __init__(self, mode: Mode = "arccos"):
        self.mode = mode

    def counts(self, num_tokens: int, num_steps: int) -> list[int]:
        _check_steps(num_tokens, num_steps)
        if num_steps == 1:
            return [num_tokens]  # the curves start at 0: nothing to normalise by
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


class CosineFloor:
    """After step i, max(1, floor(l cos(pi/2 (i+1)/N))) tokens stay masked, none after the last (Lumina-DiMOO).

    With many steps some reveal nothing: 36 or more for 256 tokens, 143 for 4096.
    """

    def counts(self, num_tokens: int, num_steps: int) -> list[int]:
        _check_steps(num_tokens, num_steps)
        # float32 throughout: for some N the product sits on an integer and its rounding decides.
        t = torch.arange(1, num_steps + 1, dtype=torch.float32) / num_steps
        kept = torch.floor(num_tokens * torch.cos(0.5 * math.pi * t)).clamp(min=1).long()
        kept[-1] = 0
        return (-torch.diff(kept, prepend=torch.tensor([num_tokens]))).tolist()


def _check_steps(num_tokens: int, num_steps: int) -> None:
    if not 1 <= num_steps <= num_tokens:
        raise ValueError(f"sampling.num_steps={num_steps} must be between 1 and the {num_tokens} tokens of an image")
