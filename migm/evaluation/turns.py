"""Make and time the same images by several samplers, which take turns round by round."""

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from rich.progress import Progress
from torch import Tensor

from migm.bases.base import Inputs, StepRecord
from migm.evaluation.cost import Cost, costs, settled_seconds, warm_ups
from migm.runtime.compiling import as_it_is
from migm.runtime.files import content_hash
from migm.sampling.sampler import Sampler


class Wanted(NamedTuple):
    """An image to make: its label or prompt, and its number in the run of a seed."""

    shown: int | str
    number: int


class Listed:
    """The inputs of a list, in turn."""

    def __init__(self, shown: Sequence[int | str]):
        self.shown = shown

    def __call__(self, images: Tensor) -> Inputs:
        return as_inputs([self.shown[i % len(self.shown)] for i in images.tolist()])

    def fingerprint(self) -> str:
        return content_hash(str(self.shown))


def as_inputs(shown: Sequence[int | str]) -> Inputs:
    """Return labels or prompts as a base takes them."""
    return [str(each) for each in shown] if isinstance(shown[0], str) else torch.tensor(shown)


@dataclass
class Lane:
    """A sampler with what it cost and made so far; `seconds` are those of each round, per image."""

    sampler: Sampler
    cost: Cost
    images: list[Tensor] = field(default_factory=list)  # uint8 (3, h, w)
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median seconds of an image."""
        return statistics.median(self.seconds)

    def times(self, other: "Lane") -> float:
        """Return how many times as quick this is as the other: the median of the ratios of each round."""
        return statistics.median(theirs / own for own, theirs in zip(self.seconds, other.seconds, strict=True))

    def make(self, wanted: Sequence[Wanted], seed: int, pace: "Pace") -> None:
        """Make a round's images and take the time from labels or prompts to pictures."""
        base, numbers = self.sampler.base, torch.tensor([each.number for each in wanted])
        inputs, made = as_inputs([each.shown for each in wanted]), []
        observers = [] if self.sampler.replays else [_Steps(self.cost.ffe_steps, pace)]  # a replay shows no step
        call = lambda: made.append(self.sampler.images(inputs, seed, numbers, observers))  # noqa: E731
        self.seconds.append(settled_seconds(call, base.device) / len(wanted))
        self.images += list(made[-1].cpu())

    def warm_up(self, wanted: Sequence[Wanted], seed: int) -> None:
        """Compile and capture, where the sampler does; `costs` has run everything else once."""
        if self.sampler.replays or self.sampler.fast is not as_it_is:
            numbers, inputs = torch.tensor([w.number for w in wanted]), as_inputs([w.shown for w in wanted])
            for _ in range(warm_ups(self.sampler)):
                self.sampler.images(inputs, seed, numbers)


class Pace:
    """Show what is done of `num_rounds` rounds, in full steps, and tell how many of them fit into `max_seconds`."""

    def __init__(self, bar: Progress, num_rounds: int, round_cost: float, max_seconds: float | None):
        self.bar, self.num_rounds, self.round_cost, self.max_seconds = bar, num_rounds, round_cost, max_seconds
        self.task = bar.add_task("side by side", total=num_rounds * round_cost)
        self.start, self.done = time.monotonic(), 0.0

    def reach(self, done: float) -> None:
        """Note that `done` full steps are made since the start."""
        self.done = done
        self.bar.update(self.task, completed=done, total=self.fitting() * self.round_cost)

    def fitting(self) -> int:
        """Return how many rounds end in time at the rate so far, at least those begun."""
        if self.max_seconds is None or not self.done:
            return self.num_rounds
        in_time = self.max_seconds / (time.monotonic() - self.start) * self.done / self.round_cost
        return min(self.num_rounds, max(int(in_time), math.ceil(self.done / self.round_cost - 1e-6)))


class _Steps:
    """Tell the pace of every step of a run."""

    def __init__(self, costs: Sequence[float], pace: Pace):
        self.costs, self.pace, self.reached = iter(costs), pace, pace.done

    def on_step(self, record: StepRecord) -> None:
        self.reached += next(self.costs, 0.0)
        self.pace.reach(self.reached)


def lanes(samplers: Sequence[Sampler], wanted: Sequence[Wanted]) -> list[Lane]:
    """Count what an image costs by every sampler, which is also the warm-up of all that is not compiled."""
    source = Listed([each.shown for each in wanted])
    return [Lane(*both) for both in zip(samplers, costs(samplers, source), strict=True)]


def rounds(
    compared: Sequence[Lane],
    wanted: Sequence[Wanted],
    batch_size: int,
    seed: int,
    bar: Progress,
    max_seconds: float | None = None,
) -> Iterator[int]:
    """Make `wanted` in rounds of `batch_size` images by every sampler -> the number of images so far.

    A round that would not end within `max_seconds` of the first is left out.
    """
    parts = [wanted[i : i + batch_size] for i in range(0, len(wanted), batch_size)]
    for lane in compared:
        lane.warm_up(parts[0], seed)
    round_cost = sum(lane.cost.ffe for lane in compared)
    pace = Pace(bar, len(parts), round_cost, max_seconds)
    for done, part in enumerate(parts):
        reached = done * round_cost
        for lane in compared:
            lane.make(part, seed, pace)
            reached += lane.cost.ffe
            pace.reach(reached)
        yield sum(map(len, parts[: done + 1]))
        if done + 1 >= pace.fitting():
            break
