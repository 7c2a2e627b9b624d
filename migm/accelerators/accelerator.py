"""An accelerator is a refresh policy (when the base runs) and a predictor (what stands in for it)."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from migm.accelerators.refresh import AdaptivePolicy, Policy
from migm.bases.base import Base, Branch
from migm.bases.layers import Runner, layered, run_blocks
from migm.runtime.errors import UserError


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

    def runner(self, step: int) -> Runner:
        """What takes all rows through all blocks, as the base itself would; `update` with the features follows."""
        ...


@runtime_checkable
class TargetForecast(LayerForecast, Protocol):
    """One whose cheap steps reveal positions that the full step before them has ranked."""

    def target(self, positions: Tensor) -> None:
        """The positions (b, m) that will be revealed until the next full step; the full step's own come first."""
        ...


@runtime_checkable
class Learned(Protocol):
    """A policy or predictor with something of its own that was learned or fitted."""

    def fingerprint(self, base: Base) -> str:
        """Hash of it, empty without any."""
        ...


class Predictor(Protocol):
    def start(self, base: Base, branch: Branch) -> Forecast: ...


class Accelerator:
    """Holds no state of a generation and draws no random numbers; `start` makes the state of one."""

    def __init__(self, policy: Policy | AdaptivePolicy, predictor: Predictor | None = None, name: str = "vanilla"):
        self.policy, self.predictor, self.name = policy, predictor, name
        if isinstance(policy, AdaptivePolicy):
            if predictor is None:
                raise UserError(f"accelerator.predictor is missing: {type(policy).__name__} leaves steps to one")
            if getattr(predictor, "ranks_ahead", False):
                raise UserError(
                    f"accelerator.predictor {type(predictor).__name__} ranks at a full step what is revealed until the "
                    f"next one, which accelerator.policy {type(policy).__name__} does not know in advance"
                )

    def fingerprint(self, base: Base) -> str:
        """Hash of what was learned or fitted, empty without any."""
        learned = [part for part in (self.policy, self.predictor) if isinstance(part, Learned)]
        return "+".join(filter(None, (part.fingerprint(base) for part in learned)))

    def start(self, base: Base, branches: Sequence[Branch], counts: Sequence[int]) -> "Run":
        """The state of one generation; `counts` are the tokens that each step is to reveal."""
        if isinstance(self.policy, AdaptivePolicy):
            assert self.predictor is not None  # for the type checker: refused above
            return AdaptiveRun(base, branches, counts, self.policy, self.predictor, self.name)
        plan = self.policy.plan(len(counts))
        if self.predictor is None and not all(plan):
            raise UserError("accelerator.predictor is missing: this policy leaves steps that the base does not compute")
        return PlannedRun(base, branches, counts, plan, self.predictor, self.name)


class Run(Protocol):
    """One generation."""

    @property
    def state(self) -> object:
        """All that is kept between steps."""
        ...

    def features(self, step: int, tokens: Tensor, new_positions: Tensor, mask_ratio: Tensor) -> list[Tensor]:
        """Features (copies * b, t, c) of every branch at this step, true or predicted."""
        ...

    def candidates(self, step: int, masked: Tensor, count: int) -> Tensor:
        """Which of the masked positions (b, k) this step may reveal, (b, m) ascending."""
        ...

    def scored(self, step: int, scores: Tensor, positions: Tensor, chosen: Tensor) -> None:
        """Takes the scores (b, m) of the candidates and the indices (b, count) of those that were revealed."""
        ...

    def is_full(self, step: int) -> bool:
        """Whether the base ran for every image at this step, which has been computed."""
        ...

    def mean_full_steps(self) -> float:
        """At how many of the steps so far the base ran, on average over the images."""
        ...


class PlannedRun:
    """A generation whose full steps are known before it starts."""

    def __init__(
        self,
        base: Base,
        branches: Sequence[Branch],
        counts: Sequence[int],
        plan: list[bool],
        predictor: Predictor | None,
        name: str,
    ):
        self.base, self.branches, self.counts, self.plan = base, branches, counts, plan
        self.forecasts: list[Forecast] = []
        if predictor is not None and not all(plan):
            self.forecasts = [start(predictor, base, branch, name) for branch in branches]
        self.ranked: Tensor | None = None  # (b, m) what the cheap steps until the next full one reveal, in this order

    @property
    def state(self) -> object:
        return self.forecasts, self.ranked

    def is_full(self, step: int) -> bool:
        return self.plan[step]

    def mean_full_steps(self) -> float:
        return float(sum(self.plan))

    def features(self, step: int, tokens: Tensor, new_positions: Tensor, mask_ratio: Tensor) -> list[Tensor]:
        if not self.plan[step]:
            return [f.predict(step, tokens, new_positions, mask_ratio) for f in self.forecasts]
        if not self.forecasts:
            return [self.base.features(tokens, branch, mask_ratio) for branch in self.branches]
        return [
            full_step(self.base, branch, forecast, step, tokens, mask_ratio)
            for branch, forecast in zip(self.branches, self.forecasts, strict=True)
        ]

    def candidates(self, step: int, masked: Tensor, count: int) -> Tensor:
        if self.plan[step] or self.ranked is None:
            return masked
        chosen, self.ranked = self.ranked[:, :count], self.ranked[:, count:]
        return chosen.sort(dim=1).values

    def scored(self, step: int, scores: Tensor, positions: Tensor, chosen: Tensor) -> None:
        targeted = [f for f in self.forecasts if isinstance(f, TargetForecast)]
        if not targeted or not self.plan[step]:
            return
        end = next((i for i in range(step + 1, len(self.plan)) if self.plan[i]), len(self.plan))
        wanted = min(chosen.shape[1] + sum(self.counts[step + 1 : end]), positions.shape[1])
        first = scores.scatter(1, chosen, float("inf"))  # what has been revealed, then the best of the rest
        ranked = positions.gather(1, first.topk(wanted).indices)
        self.ranked = ranked[:, chosen.shape[1] :]
        for forecast in targeted:
            forecast.target(ranked)


class AdaptiveRun:
    """A generation whose policy decides at every step, for each image on its own.

    So an image comes out the same at any batch size. The base runs for all images of a step that
    need it together; forecasts, whose pasts differ, are kept and asked image by image.
    """

    def __init__(
        self,
        base: Base,
        branches: Sequence[Branch],
        counts: Sequence[int],
        policy: AdaptivePolicy,
        predictor: Predictor,
        name: str,
    ):
        self.base, self.branches = base, branches
        images = torch.arange(len(branches[0].condition) // branches[0].copies, device=base.device)
        self.own = [[start(predictor, base, b.images(image), name) for b in branches] for image in images.split(1)]
        self.watch = policy.start(base, branches, len(counts))
        self.full: list[list[bool]] = []

    @property
    def state(self) -> object:
        return self.own, self.watch

    def is_full(self, step: int) -> bool:
        return all(self.full[step])

    def mean_full_steps(self) -> float:
        return sum(map(sum, self.full)) / len(self.own)

    def features(self, step: int, tokens: Tensor, new_positions: Tensor, mask_ratio: Tensor) -> list[Tensor]:
        self.full.append(self.watch.full(step, tokens, mask_ratio))
        found: list[list[Tensor]] = [[] for _ in self.own]
        together = [i for i, full in enumerate(self.full[step]) if full]
        if any(isinstance(forecast, LayerForecast) for forecast in self.own[0]):
            groups = [[i] for i in together]  # each keeps what it needs of the layers
        else:
            groups = [together] if together else []
        for group in groups:
            images = torch.tensor(group, device=tokens.device)
            for j in range(len(self.branches)):
                self._full(step, j, images, tokens[images], mask_ratio[images], found)
        for i, full in enumerate(self.full[step]):
            if not full:
                at = slice(i, i + 1)
                found[i] = [f.predict(step, tokens[at], new_positions[at], mask_ratio[at]) for f in self.own[i]]
        return [torch.stack(images, 1).flatten(0, 1) for images in zip(*found, strict=True)]

    def _full(
        self, step: int, j: int, images: Tensor, tokens: Tensor, mask_ratio: Tensor, found: list[list[Tensor]]
    ) -> None:
        """Branch j of the images (k,) by the base; their features are shown to the forecasts and added to `found`."""
        first, numbers, runner = self.own[int(images[0])][j], images.tolist(), run_blocks
        if isinstance(first, LayerForecast):
            runner = first.runner(step)
        more = {}
        if hasattr(self.base, "blocks"):
            more = {"runner": lambda blocks, x, ctx: runner(self.watch.blocks(blocks, j, images), x, ctx)}
        branch = self.branches[j].images(images)
        features = self.base.features(tokens, branch, mask_ratio, **more)
        for i, one in zip(numbers, features.unflatten(0, (branch.copies, -1)).unbind(1), strict=True):
            self.own[i][j].update(step, one)
            found[i].append(one)

    def candidates(self, step: int, masked: Tensor, count: int) -> Tensor:
        return masked

    def scored(self, step: int, scores: Tensor, positions: Tensor, chosen: Tensor) -> None:
        """Nothing is ranked ahead, since the next full step is not known."""


def start(predictor: Predictor, base: Base, branch: Branch, name: str) -> Forecast:
    """The predictor's forecast, refused where the base lacks what it needs."""
    forecast = predictor.start(base, branch)
    if isinstance(forecast, LayerForecast):
        layered(base, f"accelerator={name}")
    return forecast


def full_step(base: Base, branch: Branch, forecast: Forecast, step: int, tokens: Tensor, mask_ratio: Tensor) -> Tensor:
    """The base's features, computed by the forecast's runner where it has one, and shown to it."""
    runner = {"runner": forecast.runner(step)} if isinstance(forecast, LayerForecast) else {}
    features = base.features(tokens, branch, mask_ratio, **runner)
    forecast.update(step, features)
    return features
