"""Place B full steps where the errors of the cheap steps between them are least (docs/placement.md, The search)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

Total = Literal["sum", "max"]
History = tuple[int, ...]  # the last full steps that a prediction depends on, ascending
Errors = Mapping[History, Sequence[float]]  # of the cheap steps that follow the last step of a history, in order

Cost = tuple[float, float]  # the total, then the sum, which decides between equal maxima


class Placement(NamedTuple):
    """Full steps, ascending from 0, and the predicted total of the errors of all other steps."""

    steps: tuple[int, ...]
    error: float


def histories(num_steps: int, memory: int, max_gap: int) -> list[History]:
    """Return all histories that cheap steps may follow, in ascending order.

    A prediction depends on the last `memory` full steps; there are fewer of them only before that many were made, and
    then the first is step 0. Between two full steps, and after the last one, are at most `max_gap` cheap steps.
    """
    layer: list[History] = [(0,)]
    found = {(0,)} if num_steps > 1 else set()
    while layer:
        longer = {extended(h, t, memory) for h in layer for t in range(h[-1] + 1, min(h[-1] + max_gap + 2, num_steps))}
        layer = [h for h in longer if h not in found and h[-1] < num_steps - 1]
        found |= set(layer)
    return sorted(found)


def extended(history: History, step: int, memory: int) -> History:
    """Return the history after a further full step."""
    return (*history, step)[-memory:]


def follows(history: History, num_steps: int, max_gap: int) -> range:
    """Return the cheap steps that may follow a history."""
    return range(history[-1] + 1, min(history[-1] + max_gap + 1, num_steps))


def place(
    errors: Errors, num_steps: int, memory: int, *, first: int = 1, total: Total = "sum", most: int | None = None
) -> dict[int, Placement]:
    """Return for every possible number of full steps, up to `most`, those with the least total of errors.

    The first `first` steps are full. Dynamic programming over the histories after each full step: at most
    N^(memory + 1) B transitions. The result is exact for the errors given. Of equal plans it prefers those found first,
    in ascending order of histories.
    """
    sums = {history: list(_running(values, total)) for history, values in errors.items()}
    layer: dict[History, tuple[Cost, History]] = {(0,): ((0.0, 0.0), (0,))}
    found: dict[int, Placement] = {}
    for b in range(1, min(most or num_steps, num_steps) + 1):
        ends = [(joined(cost, _segment(sums, h, num_steps), total), plan) for h, (cost, plan) in layer.items()]
        best = min(ends, default=None, key=lambda end: end[0])
        if best is not None and b >= first and math.isfinite(best[0][0]):
            found[b] = Placement(best[1], best[0][0])
        longer: dict[History, tuple[Cost, History]] = {}
        for history, (cost, plan) in sorted(layer.items()):
            last = history[-1]
            for t in range(last + 1, min(last + 2, num_steps) if last + 1 < first else num_steps):
                reached = joined(cost, _segment(sums, history, t), total)
                if math.isinf(reached[0]):
                    break  # no longer gap was measured
                after = extended(history, t, memory)
                if after not in longer or reached < longer[after][0]:
                    longer[after] = reached, (*plan, t)
        layer = longer
    return found


def error_of(errors: Errors, steps: Sequence[int], num_steps: int, memory: int, total: Total = "sum") -> float:
    """Return the predicted total for any full steps, ascending from 0; infinite if a gap is longer than measured."""
    cost: Cost = (0.0, 0.0)
    for count, until in enumerate([*steps[1:], num_steps], 1):
        history = tuple(steps[max(0, count - memory) : count])
        values = list(_running(errors.get(history, ()), total))
        cost = joined(cost, _segment({history: values}, history, until), total)
    return cost[0]


def joined(a: Cost, b: Cost, total: Total) -> Cost:
    """Return the cost of both of two parts of a plan."""
    return (a[0] + b[0] if total == "sum" else max(a[0], b[0])), a[1] + b[1]


def _running(values: Sequence[float], total: Total) -> Iterator[Cost]:
    """Yield the cost of the first 0, 1, 2, ... cheap steps."""
    cost: Cost = (0.0, 0.0)
    yield cost
    for value in values:
        cost = joined(cost, (value, value), total)
        yield cost


def _segment(sums: Mapping[History, Sequence[Cost]], history: History, until: int) -> Cost:
    """Return the cost of the cheap steps between a history and the step `until`; infinite if it was not measured."""
    cheap = until - history[-1] - 1
    known: Sequence[Cost] = sums.get(history, ((0.0, 0.0),))
    return known[cheap] if cheap < len(known) else (math.inf, math.inf)
