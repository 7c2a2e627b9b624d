"""Choose full steps by measured segment errors, and say what these predict for the rules that ask nothing."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from migm.accelerators.placement import History, Total, error_of, place
from migm.accelerators.refresh import Interval, Uniform
from migm.analyses.segment_table import DIGITS
from migm.analyses.segments import Segment, segments

Row = dict[str, Any]  # of one B: the chosen steps and the predicted errors
FIRSTS = range(1, 5)  # first full steps of the intervals that are compared


@dataclass(frozen=True)
class Plans:
    """The errors of i images at the s segments of N steps, and what is chosen by their means."""

    errors: Float[Tensor, "i s"]
    num_steps: int
    memory: int
    max_gap: int
    total: Total

    def by_history(self, values: Sequence[float]) -> dict[History, list[float]]:
        """Return values, given in the order of `segments`, of every history."""
        found: dict[History, list[float]] = {}
        for segment, value in zip(self.segments, values, strict=True):
            found.setdefault(segment.history, []).append(value)
        return found

    @functools.cached_property
    def segments(self) -> list[Segment]:
        return segments(self.num_steps, self.memory, self.max_gap)

    def placed(self, errors: Float[Tensor, "i s"], first: int, most: int) -> dict[int, tuple[int, ...]]:
        """Return the best full steps for the means of these images, of every possible B up to `most`."""
        means = self.by_history(errors.mean(0).tolist())
        found = place(means, self.num_steps, self.memory, first=first, total=self.total, most=most)
        return {b: placement.steps for b, placement in found.items()}

    def predicted(self, errors: Float[Tensor, "i s"], steps: Sequence[int]) -> float:
        """Return what the means of these images predict for full steps; infinite if a gap was not measured."""
        means = self.by_history(errors.mean(0).tolist())
        return error_of(means, steps, self.num_steps, self.memory, self.total)

    def rows(self, budgets: Sequence[int], first: int) -> list[Row]:
        """Return what is chosen with `first` full steps by request, with predicted errors.

        `held_out` is the error of plans chosen on one half of the images and judged by the other, the mean of both
        ways. `uniform` and the best `interval` of as many full steps are what was had without a search; None without
        one.
        """
        most, n = max(budgets), self.num_steps
        chosen = self.placed(self.errors, first, most)
        halves = (self.errors[0::2], self.errors[1::2]) if len(self.errors) > 1 else ()
        crossed = [(judge, self.placed(half, first, most)) for half, judge in zip(halves, halves[::-1], strict=True)]
        rows = []
        for b in (b for b in budgets if b in chosen):
            held_out = [self.predicted(judge, plans[b]) for judge, plans in crossed]
            interval, words = self.interval(b)
            found = {
                "error": self.predicted(self.errors, chosen[b]),
                "held_out": sum(held_out) / 2 if held_out else None,
                "uniform": self.predicted(self.errors, Uniform(b).steps(n)),
                "interval": self.predicted(self.errors, interval) if interval else None,
            }
            known = {key: shortened(value) for key, value in found.items()}
            rows.append({"num_full_steps": b, "first": first, "steps": list(chosen[b]), **known, "interval_of": words})
        return rows

    def interval(self, b: int) -> tuple[list[int], str]:
        """Return the steps of the best interval with b full steps, and words for it; empty if there is none."""
        known = {}
        for first in FIRSTS:
            for every in range(1, self.num_steps + 1):
                plan = Interval(every, first).plan(self.num_steps)
                steps = [i for i, full in enumerate(plan) if full]
                if len(steps) == b:
                    known.setdefault(tuple(steps), f"every {every}, first {first}")
        best = min(known, key=lambda steps: self.predicted(self.errors, steps), default=())
        return list(best), known.get(best, "")

    def map(self) -> Float[Tensor, "n n"]:
        """Return mean errors by last full step s and by g - 1, over the full steps before s; NaN where nothing is."""
        n = self.num_steps
        total, count = torch.zeros(2, n, n, dtype=torch.float64)
        for (history, step), value in zip(self.segments, self.errors.mean(0), strict=True):
            total[history[-1], step - history[-1] - 1] += value
            count[history[-1], step - history[-1] - 1] += 1
        return total / count.where(count > 0, torch.nan)


def shortened(value: float | None) -> float | None:
    """Return a number with as many digits as are written; None for one that is infinite."""
    return None if value is None or math.isinf(value) else float(f"{value:.{DIGITS}g}")
