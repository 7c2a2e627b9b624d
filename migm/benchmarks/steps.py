"""The parts of a step as calls to time: full step, cheap step, what follows either, and decoding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from migm.accelerators.order import Order
from migm.accelerators.predictor import PredictorState
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.runs import full_step
from migm.accelerators.runs import start as start_predictor
from migm.bases.base import Inputs, Moment, StepRecord
from migm.evaluation.cost import counted
from migm.runtime.compiling import PLAIN
from migm.runtime.shapes import Positions, Tokens
from migm.sampling.loop import Generation
from migm.sampling.sampler import Sampler

STEPS = ("full", "cheap", "tail", "cheap_and_tail", "decode")


@dataclass
class Given:
    """A `Run` whose features are given: what a step costs beside them is left."""

    given: Sequence[Tensor]
    order: Order | None = None
    state: object = None

    def features(self, step: int, tokens: Tokens, new_positions: Positions, moment: Moment) -> list[Tensor]:
        return list(self.given)

    def receive(self, step: int, features: Sequence[Tensor]) -> bool:
        return False

    def is_full(self, step: int) -> bool:
        return False

    def full_images(self, step: int) -> list[bool]:
        return [False] * len(self.given[0])

    def mean_full_steps(self) -> float:
        return 0.0


@dataclass
class Predicted(Given):
    """A `Run` of cheap steps, each one from the same features."""

    states: Sequence[PredictorState] = ()

    def features(self, step: int, tokens: Tokens, new_positions: Positions, moment: Moment) -> list[Tensor]:
        for state, features in zip(self.states, self.given, strict=True):
            state.update(0, features)
        return [state.predict(step, tokens, new_positions, moment) for state in self.states]


@dataclass(frozen=True)
class Halfway:
    """A generation with half of the tokens masked, at its middle step; a call makes that step, always the same."""

    generation: Generation
    index: int
    tokens: Tokens
    masked: Positions
    new_positions: Int[Tensor, "b _"]

    def __call__(self) -> StepRecord:
        state = {"index": self.index, "tokens": self.tokens, "masked": self.masked, "extra": 0}
        for name, value in {**state, "new_positions": self.new_positions}.items():
            setattr(self.generation, name, value)
        return self.generation.step()


def step_jobs(vanilla: Sampler, predictor: Shortcut, inputs: Inputs) -> dict[str, Callable[[], Any]]:
    """Return a call for each of STEPS, in the sampler's runtime.

    `full` and `cheap` compute the features of a step, a cheap one from the mean number of new tokens: those of a step,
    or for a shortcut that starts from full steps those of its mean gap. `tail` is what follows: head, guidance, draw,
    selection and writing. `decode` maps tokens to images.
    """
    base, b, n = vanilla.base, len(inputs), vanilla.num_steps
    device, spec, fast = base.device, base.spec, vanilla.fast
    branches = base.encode(inputs, guided=vanilla.sampling.guidance is not None)
    tokens = torch.randint(0, spec.vocab_size, (b, spec.num_tokens), device=device)
    index, new = n // 2, spec.num_tokens // n
    order = torch.rand(b, spec.num_tokens, device=device).argsort(1)
    masked = order[:, : max(spec.num_tokens // 2, new)].sort(1).values
    half = tokens.scatter(1, masked, spec.vocab_size)
    read = new * (1 + getattr(predictor.module, "max_gap", 1)) // 2
    new_positions = order[:, -read:].sort(1).values

    moment = Moment.at(index, n, torch.full((b,), 0.5, device=device))

    def full() -> list[Tensor]:
        return [full_step(base, branch, None, 0, tokens, moment, fast) for branch in branches]

    given = full()
    states = [start_predictor(predictor, base, branch, "shortcut", fast) for branch in branches]
    predicted = Predicted(given, states=states)
    numbers = torch.arange(b)

    def halfway(run: Given) -> Halfway:
        generation = vanilla.start(inputs, vanilla.noise(0, numbers))
        generation.run, generation.counts = run, [new] * n
        return Halfway(generation, index, half, masked, new_positions)

    jobs = (
        full,
        lambda: predicted.features(index, half, new_positions, moment),
        halfway(Given(given)),
        halfway(predicted),
        lambda: base.decode(tokens),
    )
    return dict(zip(STEPS, jobs, strict=True))


def step_flops(vanilla: Sampler, predictor: Shortcut, inputs: Inputs) -> dict[str, int]:
    """Return the FLOPs of each of STEPS, which are counted without compiling."""
    jobs = step_jobs(vanilla.in_runtime(PLAIN), predictor, inputs)
    return {part: counted(job) for part, job in jobs.items()}
