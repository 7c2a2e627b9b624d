"""Refresh policies: at which of the N steps the base runs. Step 0 always does."""

import math
from typing import Literal, Protocol

from migm.runtime import UserError


class Policy(Protocol):
    def plan(self, num_steps: int) -> list[bool]:
        """True where the base runs."""
        ...


class Always:
    """The base at every step: vanilla sampling."""

    def plan(self, num_steps: int) -> list[bool]:
        return [True] * num_steps


class Uniform:
    """B full steps spread evenly over N.

    `paper` is floor(j N / B) for j = 0...B-1; `reference` is the released code's rounding of
    N k / B, half to even, each at least one after the last. The published tables come from the latter.
    """

    def __init__(self, num_full_steps: int, rule: Literal["paper", "reference"] = "reference"):
        if rule not in ("paper", "reference"):
            raise ValueError(f"accelerator.policy.rule={rule} is unknown; one of paper, reference")
        self.num_full_steps, self.rule = num_full_steps, rule

    def steps(self, num_steps: int) -> list[int]:
        """The full steps, ascending."""
        n, b = num_steps, self.num_full_steps
        if not 1 <= b <= n:
            raise ValueError(f"sampling.num_full_steps={b} must be between 1 and sampling.num_steps={n}")
        if self.rule == "paper":
            return [math.floor(j * n / b) for j in range(b)]
        steps = [0]
        for k in range(1, b):
            steps.append(max(steps[-1] + 1, round(n * (k / b))))
        return steps

    def plan(self, num_steps: int) -> list[bool]:
        full = set(self.steps(num_steps))
        return [i in full for i in range(num_steps)]


class WarmupInterval:
    """ML-Cache's: all steps up to w0 = floor(N * warmup_ratio), then every `refresh_interval`-th after w0.

    The number of full steps follows from the three; `num_full_steps` is not read.
    """

    def __init__(self, warmup_ratio: float, refresh_interval: int):
        if not 0 <= warmup_ratio <= 1:
            raise UserError(f"accelerator.policy.warmup_ratio={warmup_ratio} must be from 0 to 1")
        if refresh_interval < 1:
            raise UserError(f"accelerator.policy.refresh_interval={refresh_interval} must be at least 1")
        self.warmup_ratio, self.refresh_interval = warmup_ratio, refresh_interval

    def plan(self, num_steps: int) -> list[bool]:
        last = int(num_steps * self.warmup_ratio)
        return [i <= last or (i - last) % self.refresh_interval == 0 for i in range(num_steps)]
