"""Refresh policies: at which of the N steps the base runs. Step 0 always does."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Protocol, runtime_checkable

from torch import Tensor

from migm.bases.base import Base, Branch
from migm.bases.layers import Block
from migm.runtime.errors import UserError
from migm.runtime.kinds import Count, Length, Share, Whole


class Policy(Protocol):
    """One that knows all full steps before sampling starts."""

    def plan(self, num_steps: int) -> list[bool]:
        """True where the base runs."""
        ...


class Watch(Protocol):
    """What an adaptive policy keeps during one generation."""

    def full(self, step: int, tokens: Tensor, mask_ratio: Tensor) -> list[bool]:
        """Whether the base runs at this step, for each image of tokens (b, l)."""
        ...

    def blocks(self, blocks: Sequence[Block], index: int, images: Tensor) -> Sequence[Block]:
        """The blocks for the images (k,) of branch `index`, less what was computed of them to decide."""
        ...


@runtime_checkable
class AdaptivePolicy(Protocol):
    """One that decides while sampling."""

    def start(self, base: Base, branches: Sequence[Branch], num_steps: int) -> Watch: ...


class Always:
    """The base at every step: vanilla sampling."""

    def plan(self, num_steps: int) -> list[bool]:
        return [True] * num_steps


class Uniform:
    """B full steps spread evenly over N.

    `paper` is floor(j N / B) for j = 0...B-1; `reference` is the released code's rounding of
    N k / B, half to even, each at least one after the last. The published tables come from the latter.
    """

    def __init__(self, num_full_steps: Count, rule: Literal["paper", "reference"] = "reference"):
        self.num_full_steps, self.rule = num_full_steps, rule

    def steps(self, num_steps: int) -> list[int]:
        """The full steps, ascending."""
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


class Interval:
    """TaylorSeer's and dLLM-Cache's: the first `first_enhance` steps, then one after every `interval` - 1 cheap steps.

    Without `first_enhance` (1) that is every step divisible by `interval`. The number of full steps follows
    (docs/originals/methods.md, dLLM-Cache and TaylorSeer); `num_full_steps` is not read.
    """

    def __init__(self, interval: Count, first_enhance: Count = 1):
        self.interval, self.first_enhance = interval, first_enhance

    def plan(self, num_steps: int) -> list[bool]:
        last = self.first_enhance - 1
        return [i <= last or (i - last) % self.interval == 0 for i in range(num_steps)]


class WarmupInterval:
    """ML-Cache's: all steps up to w0 = floor(N * warmup_ratio), then every `refresh_interval`-th after w0.

    The number of full steps follows from the three; `num_full_steps` is not read.
    """

    def __init__(self, warmup_ratio: Share, refresh_interval: Count):
        self.warmup_ratio, self.refresh_interval = warmup_ratio, refresh_interval

    def plan(self, num_steps: int) -> list[bool]:
        return Interval(self.refresh_interval, int(num_steps * self.warmup_ratio) + 1).plan(num_steps)


class Table:
    """Full steps by list, such as those of a search."""

    def __init__(self, steps: Annotated[Sequence[Whole], Length()]):
        if steps[0] != 0 or list(steps) != sorted(set(steps)):
            raise UserError(f"accelerator.policy.steps={list(steps)} must ascend from 0, each once")
        self.steps = list(steps)

    def plan(self, num_steps: int) -> list[bool]:
        if self.steps[-1] >= num_steps:
            raise UserError(
                f"accelerator.policy.steps={self.steps} goes beyond the last step {num_steps - 1} "
                f"of sampling.num_steps={num_steps}"
            )
        return [i in self.steps for i in range(num_steps)]


class Groups:
    """ReCAP's (u, T, T'): u full steps, then T - u groups of one full step and its share of the T' local ones.

    T is `num_full_steps`, and T' what is left of `num_steps`; where it does not divide, some groups are one step
    longer, the last among them (docs/originals/methods.md, ReCAP).
    """

    def __init__(self, num_full_steps: Count, u: Whole = 0):
        if not 0 <= u <= num_full_steps:
            raise UserError(f"accelerator.policy.u={u} must be from 0 to sampling.num_full_steps={num_full_steps}")
        self.num_full_steps, self.u = num_full_steps, u

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
    """`num_full_steps`, refused outside 1 to `num_steps`."""
    if not 1 <= num_full_steps <= num_steps:
        raise UserError(
            f"sampling.num_full_steps={num_full_steps} must be between 1 and sampling.num_steps={num_steps}"
        )
    return num_full_steps
