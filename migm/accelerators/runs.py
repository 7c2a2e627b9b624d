"""The state of an accelerated generation: planned ahead, or decided step by step for each image."""

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from migm.accelerators.order import Order, RankedSets
from migm.accelerators.predictor import CompiledState, LayerState, Predictor, PredictorState, TargetedState
from migm.accelerators.refresh import AdaptivePolicy
from migm.bases.base import Base, Branch, Moment
from migm.bases.layers import Runner, layered, run_blocks
from migm.runtime.compiling import Fast, as_it_is
from migm.runtime.shapes import Positions, Tokens


class Run(Protocol):
    """The state of one generation."""

    order: Order | None  # the positions that steps may reveal; None: the sampler's order

    @property
    def state(self) -> object:
        """All that is kept between steps."""
        ...

    def features(
        self, step: int, tokens: Tokens, new_positions: Positions, moment: Moment
    ) -> list[Float[Tensor, "cb _ c"]]:
        """Return the features of every branch at this step, computed by the base or predicted."""
        ...

    def receive(self, step: int, features: Sequence[Float[Tensor, "cb _ c"]]) -> bool:
        """Take the base's features of every branch in place of computing a full step, and return True.

        Return False, and do nothing, at a step that is not known to be full, and if a state keeps values of the layers.
        """
        ...

    def is_full(self, step: int) -> bool:
        """Return whether the base ran for every image at this step, which has been computed."""
        ...

    def full_images(self, step: int) -> list[bool]:
        """Return for each image whether the base ran for it at this step, which has been computed."""
        ...

    def mean_full_steps(self) -> float:
        """Return the number of steps so far at which the base ran, averaged over the images."""
        ...


class PlannedRun:
    """A generation whose full steps are set before it starts."""

    order: Order | None = None

    def __init__(
        self,
        base: Base,
        branches: Sequence[Branch],
        counts: Sequence[int],
        plan: list[bool],
        predictor: Predictor | None,
        name: str,
        fast: Fast = as_it_is,
    ):
        self.base, self.branches, self.plan, self.fast = base, branches, plan, fast
        self.states: list[PredictorState] = []
        if predictor is not None and not all(plan):
            self.states = [start(predictor, base, branch, name, fast) for branch in branches]
        targeted = [state for state in self.states if isinstance(state, TargetedState)]
        if targeted:
            self.order = RankedSets(plan, counts, targeted)

    @property
    def state(self) -> object:
        return self.states, self.order

    def is_full(self, step: int) -> bool:
        return self.plan[step]

    def full_images(self, step: int) -> list[bool]:
        return [self.plan[step]] * (len(self.branches[0].rows) // self.branches[0].copies)

    def receive(self, step: int, features: Sequence[Float[Tensor, "cb _ c"]]) -> bool:
        if not self.plan[step] or any(isinstance(state, LayerState) for state in self.states):
            return False
        for state, of_branch in zip(self.states, features, strict=bool(self.states)):
            state.update(step, of_branch)
        return True

    def mean_full_steps(self) -> float:
        return float(sum(self.plan))

    def features(
        self, step: int, tokens: Tokens, new_positions: Positions, moment: Moment
    ) -> list[Float[Tensor, "cb _ c"]]:
        if not self.plan[step]:
            return [state.predict(step, tokens, new_positions, moment) for state in self.states]
        if not self.states:
            return [full_step(self.base, branch, None, step, tokens, moment, self.fast) for branch in self.branches]
        return [
            full_step(self.base, branch, state, step, tokens, moment, self.fast)
            for branch, state in zip(self.branches, self.states, strict=True)
        ]


class AdaptiveRun:
    """A generation whose policy decides at every step, for each image separately.

    So an image is the same at any batch size. The base runs together for all images of a step that need it. The states
    of the predictor are kept and used image by image, since their full steps differ.
    """

    order: Order | None = None  # no positions are ranked ahead, since the next full step is open

    def __init__(
        self,
        base: Base,
        branches: Sequence[Branch],
        counts: Sequence[int],
        policy: AdaptivePolicy,
        predictor: Predictor,
        name: str,
        fast: Fast = as_it_is,
    ):
        self.base, self.branches, self.fast = base, branches, fast
        images = torch.arange(len(branches[0].condition) // branches[0].copies, device=base.device)
        self.states = [
            [start(predictor, base, b.images(image), name, fast) for b in branches] for image in images.split(1)
        ]
        self.watch = policy.start(base, branches, len(counts))
        self.full: list[list[bool]] = []

    @property
    def state(self) -> object:
        return self.states, self.watch

    def is_full(self, step: int) -> bool:
        return all(self.full[step])

    def full_images(self, step: int) -> list[bool]:
        return self.full[step]

    def receive(self, step: int, features: Sequence[Float[Tensor, "cb _ c"]]) -> bool:
        return False  # the policy has yet to decide

    def mean_full_steps(self) -> float:
        return sum(map(sum, self.full)) / len(self.states)

    def features(
        self, step: int, tokens: Tokens, new_positions: Positions, moment: Moment
    ) -> list[Float[Tensor, "cb _ c"]]:
        self.full.append(self.watch.full(step, tokens, moment))
        features_of: list[list[Tensor]] = [[] for _ in self.states]
        together = [i for i, full in enumerate(self.full[step]) if full]
        if any(isinstance(state, LayerState) for state in self.states[0]):
            groups = [[i] for i in together]  # image by image, since each state keeps values of the layers
        else:
            groups = [together] if together else []
        for group in groups:
            images = torch.tensor(group, device=tokens.device)
            for j in range(len(self.branches)):
                self._full(step, j, images, tokens[images], moment.images(images), features_of)
        for i, full in enumerate(self.full[step]):
            if not full:
                at = slice(i, i + 1)
                features_of[i] = [
                    s.predict(step, tokens[at], new_positions[at], moment.images(at)) for s in self.states[i]
                ]
        return [torch.stack(images, 1).flatten(0, 1) for images in zip(*features_of, strict=True)]

    def _full(
        self,
        step: int,
        j: int,
        images: Int[Tensor, " b"],
        tokens: Tokens,
        moment: Moment,
        features_of: list[list[Float[Tensor, "copies _ c"]]],
    ) -> None:
        """Run the images of branch j through the base, update their states and append to `features_of`."""
        first, numbers = self.states[int(images[0])][j], images.tolist()
        runner: Runner = partial(run_blocks, fast=self.fast)
        if isinstance(first, LayerState):
            runner = first.runner(step)
        options = {}
        if hasattr(self.base, "blocks"):
            options = {"runner": lambda blocks, x, ctx: runner(self.watch.blocks(blocks, j, images), x, ctx)}
        branch = self.branches[j].images(images)
        features = self.base.features(tokens, branch, moment, **options)
        for i, image_features in zip(numbers, features.unflatten(0, (branch.copies, -1)).unbind(1), strict=True):
            self.states[i][j].update(step, image_features)
            features_of[i].append(image_features)


def start(predictor: Predictor, base: Base, branch: Branch, name: str, fast: Fast = as_it_is) -> PredictorState:
    """Return the predictor's state; a base without the layers that it needs is refused."""
    state = predictor.start(base, branch)
    if isinstance(state, CompiledState):
        state.fast = fast
    if isinstance(state, LayerState):
        layered(base, f"accelerator={name}")
    return state


def full_step(
    base: Base,
    branch: Branch,
    state: PredictorState | None,
    step: int,
    tokens: Tokens,
    moment: Moment,
    fast: Fast = as_it_is,
) -> Float[Tensor, "{branch.copies}*b t c"]:
    """Return the base's features, computed by the state's runner if it has one, and update the state with them."""
    options = {}
    if isinstance(state, LayerState):
        options = {"runner": state.runner(step)}
    elif fast is not as_it_is and hasattr(base, "blocks"):
        options = {"runner": partial(run_blocks, fast=fast)}
    features = base.features(tokens, branch, moment, **options)
    if state is not None:
        state.update(step, features)
    return features
