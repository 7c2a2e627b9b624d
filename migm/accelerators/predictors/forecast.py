"""Forecasters of the feature path: cheap steps are extrapolated from the last full ones."""

import functools
from collections import deque
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from migm.accelerators.accelerator import Learned
from migm.accelerators.extrapolation import Extrapolation
from migm.accelerators.runners import Deltas
from migm.bases.base import Base, Branch
from migm.bases.layers import LayerBase, Runner
from migm.runtime.errors import UserError

Granularity = Literal["boundary", "module"]


class Forecast:
    """TaylorSeer, HiCache, FoCa or L2P by the `rule`, of the features (boundary) or of what every module adds.

    By `module` two series a layer are kept and added up on cheap steps, as the published code of
    TaylorSeer does; by `boundary` one of the last hidden state (docs/originals/methods.md, TaylorSeer). Drawn tokens
    reach a forecast by `module` through the input alone, by `boundary` not at all.
    """

    def __init__(self, rule: Extrapolation, granularity: Granularity = "boundary"):
        if granularity == "module" and isinstance(rule, Learned):
            raise UserError(
                "accelerator.predictor.granularity=module: the weights of accelerator.predictor.rule are fitted to the "
                "features, not to what every module adds; take boundary"
            )
        self.rule, self.granularity = rule, granularity

    def fingerprint(self, base: Base) -> str:
        return self.rule.fingerprint(base) if isinstance(self.rule, Learned) else ""

    def start(self, base: Base, branch: Branch) -> "_Boundary | _Modules":
        self.fingerprint(base)  # reads what was fitted, and refuses it for another base
        if self.granularity == "boundary":
            return _Boundary(self.rule)
        return _Modules(self.rule, base, branch)  # type: ignore[arg-type]


class History:
    """The last values of full steps, and their sum with the `weights` that a rule gives for (steps, step)."""

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
    """Makes histories of one generation, which share what they ask the rule: it is the same for all modules."""
    weights = functools.cache(lambda steps, step: rule.weights(steps, step).tolist())
    return lambda: History(rule.history, weights)


class _Boundary:
    def __init__(self, rule: Extrapolation):
        self.history = histories(rule)()

    def update(self, step: int, features: Tensor) -> None:
        self.history.update(step, features)

    def predict(self, step: int, tokens: Tensor, new_positions: Tensor, mask_ratio: Tensor) -> Tensor:
        return self.history.predict(step)


class _Modules:
    def __init__(self, rule: Extrapolation, base: LayerBase, branch: Branch):
        self.base, self.branch = base, branch
        self.deltas = Deltas(histories(rule))

    def runner(self, step: int) -> Runner:
        return self.deltas.run(step)

    def update(self, step: int, features: Tensor) -> None:
        """The runner has seen what is kept."""

    def predict(self, step: int, tokens: Tensor, new_positions: Tensor, mask_ratio: Tensor) -> Tensor:
        x, _ = self.base.prepare(tokens, self.branch, mask_ratio)
        return self.base.finalize(self.deltas.predict(step, x))
