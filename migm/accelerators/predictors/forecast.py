"""Forecast features: cheap steps are extrapolated from the last full ones."""

import functools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from migm.accelerators.extrapolation import Extrapolation
from migm.accelerators.predictor import Fitted, Learned, Predictor, Sourced
from migm.accelerators.runners import Deltas
from migm.bases.base import Base, Branch, Moment
from migm.bases.layers import LayerBase, Runner
from migm.runtime.errors import UserError

Granularity = Literal["boundary", "module"]


@dataclass(frozen=True)
class Forecast:
    """Forecast by a `rule` (TaylorSeer, HiCache, FoCa or L2P) the features, or the additions of every module.

    The granularity `module` keeps two series for each layer and adds up their forecasts on cheap steps, as the
    published code of TaylorSeer does; `boundary` keeps one series, of the last hidden state (docs/originals/methods.md,
    TaylorSeer). Drawn tokens reach a forecast by `module` only through the input of the layers, and a forecast by
    `boundary` not at all.
    """

    rule: Extrapolation
    granularity: Granularity = "boundary"

    captured: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.granularity == "module" and isinstance(self.rule, Learned):
            raise UserError(
                "accelerator.predictor.granularity=module: the weights of accelerator.predictor.rule are fitted to the "
                "features, not to what every module adds; take boundary"
            )

    @property
    def history(self) -> int:
        """The number of last full steps that a prediction depends on."""
        return self.rule.history

    def fingerprint(self, base: Base) -> str:
        return self.rule.fingerprint(base) if isinstance(self.rule, Learned) else ""

    def origin(self, base: Base) -> str:
        """Say which file the rule's weights are from; empty without one."""
        return self.rule.origin(base) if isinstance(self.rule, Sourced) else ""

    def suits(self, base: Base, predictor: Predictor | None, sampling: str, num_steps: int) -> None:
        """Refuse what the rule's weights are not for."""
        if isinstance(self.rule, Fitted):
            self.rule.suits(base, predictor, sampling, num_steps)

    def start(self, base: Base, branch: Branch) -> "_Boundary | _Modules":
        self.fingerprint(base)  # reads a calibration, and refuses that of another base
        if self.granularity == "boundary":
            return _Boundary(self.rule)
        return _Modules(self.rule, base, branch)  # type: ignore[arg-type]


class History:
    """The last values of full steps; a prediction is their sum with the `weights` of a rule for (steps, step)."""

    def __init__(self, length: int, weights: Callable[[tuple[int, ...], int], list[float]]):
        self.weights = weights
        self.steps: deque[int] = deque(maxlen=length)
        self.values: deque[Tensor] = deque(maxlen=length)

    def update(self, step: int, value: Tensor) -> None:
        self.steps.append(step)
        self.values.append(value)

    def predict(self, step: int) -> Tensor:
        weights = self.weights(tuple(self.steps), step)
        used = [(w, value) for w, value in zip(weights, self.values, strict=True) if w]
        total = torch.zeros_like(self.values[-1]) if not used else used[0][1] * used[0][0]
        for w, value in used[1:]:
            total = total.add(value, alpha=w)
        return total


def histories(rule: Extrapolation) -> Callable[[], History]:
    """Return a factory of histories for one generation; they share the rule's weights, equal for all modules."""
    weights = functools.cache(lambda steps, step: rule.weights(steps, step).tolist())
    return lambda: History(rule.history, weights)


class _Boundary:
    def __init__(self, rule: Extrapolation):
        self.history = histories(rule)()

    def update(self, step: int, features: Tensor) -> None:
        self.history.update(step, features)

    def predict(self, step: int, tokens: Tensor, new_positions: Tensor, moment: Moment) -> Tensor:
        return self.history.predict(step)


class _Modules:
    def __init__(self, rule: Extrapolation, base: LayerBase, branch: Branch):
        self.base, self.branch = base, branch
        self.deltas = Deltas(histories(rule))

    def runner(self, step: int) -> Runner:
        return self.deltas.run(step)

    def update(self, step: int, features: Tensor) -> None:
        """Do nothing: the runner has kept all values."""

    def predict(self, step: int, tokens: Tensor, new_positions: Tensor, moment: Moment) -> Tensor:
        x, ctx = self.base.prepare(tokens, self.branch, moment)
        return self.base.finalize(self.deltas.predict(step, x), ctx)
