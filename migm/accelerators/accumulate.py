"""TeaCache: the base runs once its output should have changed enough (docs/originals/methods.md, TeaCache)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from migm.accelerators.calibration import Calibration
from migm.bases.base import Base, Branch, of_images
from migm.bases.layers import Block, LayerBase, layered
from migm.runtime.kinds import NotNegative

Indicator = Literal["input", "first_block"]


class Accumulate:
    """Adds up expected changes of the output; where they reach `delta` the base runs and the sum starts again.

    What is expected of a step is a polynomial in how much an `indicator` changed since the step
    before, mean |difference| over mean |before|, of both guidance halves together: `input` is what
    enters the blocks, `first_block` what the first of them makes of it, which costs that block at
    every step. `coefficients` of the polynomial come highest first; `fit` is a file of `migm.calibrate` to
    read them from, and without both the change is taken as it is. The first and the last step are
    always full. Every image has a sum of its own, and the decision waits for the device.
    """

    def __init__(
        self,
        delta: NotNegative,
        indicator: Indicator = "input",
        coefficients: Sequence[float] | None = None,
        fit: str | Path | None = None,
    ):
        self.delta, self.fit = delta, fit
        self.indicator: Indicator = indicator
        self.coefficients = [1.0, 0.0] if coefficients is None else list(coefficients)
        self.known: Calibration | None = None

    def fingerprint(self, base: Base) -> str:
        known = self._load(base)
        return known.fingerprint() if known else ""

    def _load(self, base: Base, num_steps: int | None = None) -> Calibration | None:
        if self.fit is not None and (self.known is None or num_steps not in (None, len(self.known.gram))):
            self.known = Calibration.load(self.fit, base, num_steps, "accelerator.policy.fit")
        return self.known

    def start(self, base: Base, branches: Sequence[Branch], num_steps: int) -> "_Sum":
        own = layered(base, f"accelerator.policy.indicator={self.indicator}")
        known = self._load(base, num_steps)
        coefficients = known.polynomials[self.indicator] if known else self.coefficients
        return _Sum(own, branches, num_steps, self.delta, self.indicator, coefficients)


class _Sum:
    sum: Tensor  # (b,)

    def __init__(
        self,
        base: LayerBase,
        branches: Sequence[Branch],
        num_steps: int,
        delta: float,
        indicator: Indicator,
        coefficients: Sequence[float],
    ):
        self.base, self.branches, self.num_steps = base, branches, num_steps
        self.delta, self.coefficients = delta, coefficients
        self.indicator: Indicator = indicator
        self.last: list[Tensor] = []

    def full(self, step: int, tokens: Tensor, mask_ratio: Tensor) -> list[bool]:
        now = [signal(self.base, branch, tokens, mask_ratio, self.indicator) for branch in self.branches]
        if step == 0:
            self.sum = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
        else:
            change = relative_change(self.last, now, self.branches)
            self.sum = self.sum + sum(c * change**i for i, c in enumerate(reversed(self.coefficients)))
        self.last = now
        full = self.sum >= self.delta
        if step in (0, self.num_steps - 1):
            full = torch.ones_like(full)
        self.sum = self.sum.masked_fill(full, 0.0)
        return full.tolist()

    def blocks(self, blocks: Sequence[Block], index: int, images: Tensor) -> Sequence[Block]:
        if self.indicator == "input":
            return blocks
        first: Any = _Done(blocks[0], of_images(self.last[index], self.branches[index].copies, images))
        return [first, *blocks[1:]]


class _Done:
    """A block whose output for all rows is known."""

    def __init__(self, block: Block, out: Tensor):
        self.block, self.out = block, out

    def __getattr__(self, name: str) -> Any:
        return getattr(self.block, name)

    def __call__(self, x: Tensor, ctx: Any) -> Tensor:
        return self.out


def signal(base: LayerBase, branch: Branch, tokens: Tensor, mask_ratio: Tensor, indicator: Indicator) -> Tensor:
    """What `indicator` looks at: (copies * b, t, c)."""
    x, ctx = base.prepare(tokens, branch, mask_ratio)
    return x if indicator == "input" else base.blocks[0](x, ctx)


def relative_change(before: Sequence[Tensor], now: Sequence[Tensor], branches: Sequence[Branch]) -> Tensor:
    """mean |now - before| / mean |before| of every image (b,), over all branches, padding left out; float64."""
    difference: Tensor | float = 0.0
    size: Tensor | float = 0.0
    for old, new, branch in zip(before, now, branches, strict=True):
        difference = difference + _per_image((new - old).abs(), branch)
        size = size + _per_image(old.abs(), branch)
    return difference / size  # type: ignore[return-value]


def _per_image(values: Tensor, branch: Branch) -> Tensor:
    rows = values.double().sum(-1)
    if branch.mask is not None:
        rows = rows * branch.mask
    return rows.sum(-1).unflatten(0, (branch.copies, -1)).sum(0)
