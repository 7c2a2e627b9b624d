"""TeaCache: run the base once its output should have changed enough (docs/originals/methods.md, TeaCache)."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from migm.accelerators.calibration import Fit
from migm.accelerators.predictor import Predictor
from migm.bases.base import Base, Branch, Moment, of_images
from migm.bases.layers import Block, LayerBase, layered
from migm.runtime.kinds import NotNegative

Indicator = Literal["input", "first_block"]


@dataclass(frozen=True)
class Accumulate:
    """Add up expected changes of the output; when the sum reaches `delta`, run the base and start again from 0.

    The expected change of a step is a polynomial in the relative change of an `indicator` since the step before. That
    is mean |difference| over mean |before|, of both guidance halves together. The indicator `input` is the input of the
    blocks; `first_block` is the output of the first block, which then runs at every step.

    The polynomial's `coefficients` come highest first, or are read from a file of `migm.calibrate`, unless
    `calibration` is None: `Fit` says which. Without both, the relative change itself is added up. The first and the
    last step are always full. Every image has its own sum, and the decision waits for the device.
    """

    delta: NotNegative
    indicator: Indicator = "input"
    coefficients: Sequence[float] | None = None
    calibration: str | Path | None = field(default=None, compare=False)
    written: str | Path | None = field(default=None, compare=False)
    bundled: str | Path | None = field(default=None, compare=False)
    sampling: Literal["same", "any"] = field(default="same", compare=False)

    @functools.cached_property
    def _fit(self) -> Fit:
        return Fit("accelerator.policy", self)

    def fingerprint(self, base: Base) -> str:
        return self._fit.load(base).fingerprint() if self.calibration is not None else ""

    def origin(self, base: Base) -> str:
        """Say which calibration runs and where it comes from; empty without one."""
        if self.calibration is None:
            return ""
        self._fit.load(base)
        return self._fit.choice.words

    def suits(self, base: Base, predictor: Predictor | None, sampling: str, num_steps: int) -> None:
        """Refuse a calibration for another base, N or sampling, given by its identity."""
        if self.calibration is not None:
            self._fit.suits(base, num_steps, sampling)

    def start(self, base: Base, branches: Sequence[Branch], num_steps: int) -> "_Sum":
        layers = layered(base, f"accelerator.policy.indicator={self.indicator}")
        coefficients = self.coefficients or (1.0, 0.0)
        if self.calibration is not None:
            coefficients = self._fit.load(base, num_steps).polynomials[self.indicator]
        return _Sum(layers, branches, num_steps, self.delta, self.indicator, coefficients)


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

    def full(self, step: int, tokens: Tensor, moment: Moment) -> list[bool]:
        signals = [signal(self.base, branch, tokens, moment, self.indicator) for branch in self.branches]
        if step == 0:
            self.sum = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
        else:
            change = relative_change(self.last, signals, self.branches)
            self.sum = self.sum + sum(c * change**i for i, c in enumerate(reversed(self.coefficients)))
        self.last = signals
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
    """A block whose output for all rows has been computed."""

    def __init__(self, block: Block, out: Tensor):
        self.block, self.out = block, out

    def __getattr__(self, name: str) -> Any:
        return getattr(self.block, name)

    def __call__(self, x: Tensor, ctx: Any) -> Tensor:
        return self.out


def signal(base: LayerBase, branch: Branch, tokens: Tensor, moment: Moment, indicator: Indicator) -> Tensor:
    """Return the tensor that `indicator` compares: (copies * b, t, c)."""
    x, ctx = base.prepare(tokens, branch, moment)
    return x if indicator == "input" else base.blocks[0](x, ctx)


def relative_change(before: Sequence[Tensor], now: Sequence[Tensor], branches: Sequence[Branch]) -> Tensor:
    """Return mean |now - before| / mean |before| of every image (b,), over all branches, without padding; float64."""
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
