"""An accelerator is a refresh policy (when the base runs) and a predictor (what stands in for it)."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from migm.accelerators.refresh import Policy
from migm.bases.base import Base, Branch


class Forecast(Protocol):
    """A predictor's state for one branch of one generation."""

    def update(self, step: int, features: Tensor) -> None:
        """Take the features (b, t, c) of a full step."""
        ...

    def predict(self, step: int, tokens: Tensor, new_positions: Tensor, mask_ratio: Tensor) -> Tensor:
        """Features of a step without the base; `new_positions` (b, k) were revealed by the step before."""
        ...


class Predictor(Protocol):
    def fingerprint(self, base: Base) -> str:
        """Hash of learned weights, empty without any."""
        ...

    def start(self, base: Base, branch: Branch) -> Forecast: ...


class Accelerator:
    """Holds no state of a generation and draws no random numbers; `start` makes the state of one."""

    def __init__(self, policy: Policy, predictor: Predictor | None = None, name: str = "vanilla"):
        self.policy, self.predictor, self.name = policy, predictor, name

    def start(self, base: Base, branches: Sequence[Branch], num_steps: int) -> "Run":
        plan = self.policy.plan(num_steps)
        if self.predictor is None and not all(plan):
            raise ValueError(
                "accelerator.predictor is missing: this policy leaves steps that the base does not compute"
            )
        return Run(base, branches, plan, self.predictor)


class Run:
    """One generation: the plan, and a forecast for every branch."""

    def __init__(self, base: Base, branches: Sequence[Branch], plan: list[bool], predictor: Predictor | None):
        self.base, self.branches, self.plan = base, branches, plan
        self.forecasts: list[Forecast] = []
        if predictor is not None and not all(plan):
            self.forecasts = [predictor.start(base, branch) for branch in branches]

    def features(self, step: int, tokens: Tensor, new_positions: Tensor, mask_ratio: Tensor) -> list[Tensor]:
        """Features (copies * b, t, c) of every branch at this step, true or predicted."""
        if not self.plan[step]:
            return [f.predict(step, tokens, new_positions, mask_ratio) for f in self.forecasts]
        features = [self.base.features(tokens, branch, mask_ratio) for branch in self.branches]
        for forecast, value in zip(self.forecasts, features, strict=False):
            forecast.update(step, value)
        return features
