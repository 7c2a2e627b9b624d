"""Refresh policies decide at which of the N steps the base runs. Step 0 is always full."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, runtime_checkable

from torch import Tensor

from migm.bases.base import Base, Branch, Moment
from migm.bases.layers import Block
from migm.runtime.errors import UserError
from migm.runtime.kinds import Count, Length, Share, Whole


class Policy(Protocol):
    """A policy that knows all full steps before sampling starts."""

    def plan(self, num_steps: int) -> list[bool]:
        """Return True at the steps where the base runs."""
        ...


class Watch(Protocol):
    """The state of an adaptive policy during one generation."""

    def full(self, step: int, tokens: Tensor, moment: Moment) -> list[bool]:
        """Return for each image of tokens (b, l) whether the base runs at this step."""
        ...

    def blocks(self, blocks: Sequence[Block], index: int, images: Tensor) -> Sequence[Block]:
        """Return the blocks for the images (k,) of branch `index`, reusing outputs that the decision has computed."""
        ...


@runtime_checkable
class AdaptivePolicy(Protocol):
    """A policy that decides while sampling."""

    def start(self, base: Base, branches: Sequence[Branch], num_steps: int) -> Watch: ...


@dataclass(frozen=True)
class Always:
    """Run the base at every step: vanilla sampling."""

    def plan(self, num_steps: int) -> list[bool]:
        return [True] * num_steps


@dataclass(frozen=True)
class Uniform:
    """Spread B full steps evenly over N steps.

    `paper` is floor(j N / B) for j = 0...B-1. `reference` is the released code's rounding of N k / B, half to even,
    each step at least one after the last; the published tables come from this rule.
    """

    num_full_steps: Count
    rule: Literal["paper", "reference"] = "reference"

    def steps(self, num_steps: int) -> list[int]:
        """Return the full steps, ascending."""
        n, b = num_steps, budget(self.num_full_steps, num_steps)
        if self.rule == "paper":
            return [math.floor(j * n / b) for j in range(b)]
        steps = [0]
        for k in range(1, b):
            steps.append(max(steps[-1] + 1, round(n * (k / b))))
        return steps

    def plan(self, num_steps: int) -> list[bool]:
        full = set(self.steps(num_steps))
        return [i in full for i in range(num_steps)]


@dataclass(frozen=True)
class Interval:
    """The rule of TaylorSeer and dLLM-Cache: the first `first_enhance` steps, then every `interval`-th step.

    With the default `first_enhance` of 1 these are the steps divisible by `interval`. They determine the number of full
    steps (docs/originals/methods.md, dLLM-Cache and TaylorSeer); `num_full_steps` is not read.
    """

    interval: Count
    first_enhance: Count = 1

    def plan(self, num_steps: int) -> list[bool]:
        last = self.first_enhance - 1
        return [i <= last or (i - last) % self.interval == 0 for i in range(num_steps)]


@dataclass(frozen=True)
class WarmupInterval:
    """The rule of ML-Cache: all steps up to w0 = floor(N * warmup_ratio), then every `refresh_interval`-th after w0.

    N and the two parameters determine the number of full steps; `num_full_steps` is not read.
    """

    warmup_ratio: Share
    refresh_interval: Count

    def plan(self, num_steps: int) -> list[bool]:
        return Interval(self.refresh_interval, int(num_steps * self.warmup_ratio) + 1).plan(num_steps)


@dataclass(frozen=True)
class Table:
    """Take the full steps from a list, for instance of a search."""

    steps: Annotated[Sequence[Whole], Length()]

    def __post_init__(self) -> None:
        if self.steps[0] != 0 or list(self.steps) != sorted(set(self.steps)):
            raise UserError(f"accelerator.policy.steps={list(self.steps)} must ascend from 0, each once")

    def plan(self, num_steps: int) -> list[bool]:
        if self.steps[-1] >= num_steps:
            raise UserError(
                f"accelerator.policy.steps={list(self.steps)} goes beyond the last step {num_steps - 1} "
                f"of sampling.num_steps={num_steps}"
            )
        return [i in self.steps for i in range(num_steps)]


@dataclass(frozen=True)
class Groups:
    """ReCAP's (u, T, T'): u full steps, then T - u groups of one full step and its share of the T' local steps.

    T is `num_full_steps`, and T' is `num_steps` - T. If T' does not divide evenly, some groups are one step longer,
    among them the last (docs/originals/methods.md, ReCAP).
    """

    num_full_steps: Count
    u: Whole = 0

    def __post_init__(self) -> None:
        if not 0 <= self.u <= self.num_full_steps:
            raise UserError(
                f"accelerator.policy.u={self.u} must be from 0 to sampling.num_full_steps={self.num_full_steps}"
            )

    def plan(self, num_steps: int) -> list[bool]:
        groups, local = budget(self.num_full_steps, num_steps) - self.u, num_steps - self.num_full_steps
        if not groups and local:
            raise UserError(
                f"accelerator.policy.u={self.u} leaves no group for the {local} local steps: it must be below "
                f"sampling.num_full_steps={self.num_full_steps}"
            )
        plan = [True] * self.u
        for j in range(groups):
            plan += [True] + [False] * ((j + 1) * local // groups - j * local // groups)
        return plan


def budget(num_full_steps: int, num_steps: int) -> int:
    """Return `num_full_steps`, refusing values outside 1 to `num_steps`."""
    if not 1 <= num_full_steps <= num_steps:
        raise UserError(
            f"sampling.num_full_steps={num_full_steps} must be between 1 and sampling.num_steps={num_steps}"
        )
    return num_full_steps
