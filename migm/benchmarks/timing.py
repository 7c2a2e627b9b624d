"""Time calls that take turns in one process, until all rounds are done or the time for it is over."""

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from rich.progress import Progress

from migm.evaluation.cost import num_compiled, seconds_of, settled_seconds

Key = TypeVar("Key", bound=Hashable)
TURN_SECONDS, MOST_CALLS = 0.05, 20  # a short call is made often in one turn, since the clock's own error is large


@dataclass(frozen=True)
class Job:
    """A call to time, and how many calls it takes until it is as quick as later ones."""

    call: Callable[[], Any]
    warm_ups: int = 1


@dataclass(frozen=True)
class Timed:
    """Seconds of a job; those of `first` and `warm_up` are in no median."""

    rounds: tuple[float, ...]  # the median of each round
    first: float  # the first call
    warm_up: float  # all calls before the timed ones

    @property
    def seconds(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.rounds)

    def times(self, other: "Timed") -> float:
        """Return how many times as quick this is as the other: the median of the ratios of each round.

        What slows down the machine for a while slows down both.
        """
        return statistics.median(theirs / own for own, theirs in zip(self.rounds, other.rounds, strict=True))


class Budget:
    """The seconds within which measurements may begin; without a number there is no end."""

    def __init__(self, seconds: float | None = None):
        self.end = math.inf if seconds is None else time.monotonic() + seconds

    def over(self) -> bool:
        return time.monotonic() >= self.end


def warmed_up(job: Job, device: torch.device) -> list[float]:
    """Return seconds of the calls that a job needs, and of further ones until a call compiles nothing."""
    seconds: list[float] = []
    before = -1
    while len(seconds) < job.warm_ups or (num_compiled() > before and len(seconds) < MOST_CALLS):
        before = num_compiled()
        seconds.append(seconds_of(job.call, device))
    return seconds


def in_turns(
    jobs: Mapping[Key, Job], rounds: int, device: torch.device, budget: Budget, bar: Progress | None = None
) -> dict[Key, Timed]:
    """Time jobs in `rounds` in which they take turns; those that would begin after the budget are left out.

    What has begun gets one round at least.
    """
    task = bar.add_task("time", total=(rounds + 1) * len(jobs)) if bar else None
    before: dict[Key, list[float]] = {}
    for key, job in jobs.items():
        if not budget.over():
            before[key] = warmed_up(job, device)
        if bar and task is not None:
            bar.advance(task)
    seconds: dict[Key, list[float]] = {key: [] for key in before}
    for done in range(rounds):
        if done and budget.over():
            break
        for key, taken in seconds.items():
            taken.append(turn(jobs[key].call, device))
            if bar and task is not None:
                bar.advance(task)
    return {key: Timed(tuple(taken), before[key][0], sum(before[key])) for key, taken in seconds.items()}


def turn(call: Callable[[], object], device: torch.device) -> float:
    """Return the median seconds of the calls of one turn."""
    taken: list[float] = []
    while not taken or (sum(taken) < TURN_SECONDS and len(taken) < MOST_CALLS):
        taken.append(settled_seconds(call, device))
    return statistics.median(taken)
