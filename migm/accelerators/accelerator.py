"""An accelerator is a refresh policy (when the base runs) and a predictor (what stands in for it)."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from migm.accelerators.layers import Block
from migm.accelerators.refresh import Policy
from migm.bases.base import Base, Branch
from migm.runtime import UserError


class Forecast(Protocol):
    """A predictor's state for one branch of one generation."""

    def update(self, step: int, features: Tensor) -> None:
        """Take the features (b, t, c) of a full step."""
        ...

    def predict(self, step: int, tokens: Tensor, new_positions: Tensor, mask_ratio: Tensor) -> Tensor:
        """Features of a step without the base; `new_positions` (b, k) were revealed by the step before."""
        ...


@runtime_checkable
class LayerForecast(Forecast, Protocol):
    """A forecast that works on the layers of the base, whose full steps it runs to keep what it needs of them."""

    def runner(self, blocks: Sequence[Block], x: Tensor, ctx: Any) -> Tensor:
        """All blocks on x (b, t, c), as the base itself would; `update` with the step's features follows."""
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
        run = Run(base, branches, plan, self.predictor)
        if not hasattr(base, "blocks") and any(isinstance(f, LayerForecast) for f in run.forecasts):
            name = type(base).__name__
            raise UserError(f"accelerator={self.name} works on the layers of a base, which {name} does not offer")
        return run


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
        if not self.forecasts:
            return [self.base.features(tokens, branch, mask_ratio) for branch in self.branches]
        features = []
        for branch, forecast in zip(self.branches, self.forecasts, strict=True):
            runner = {"runner": forecast.runner} if isinstance(forecast, LayerForecast) else {}
            features.append(self.base.features(tokens, branch, mask_ratio, **runner))
            forecast.update(step, features[-1])
        return features
