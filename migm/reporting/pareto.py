"""Pareto front of points, and its hypervolume."""

from collections.abc import Sequence


def front(cost: Sequence[float], quality: Sequence[float]) -> list[int]:
    """Return indices of the Pareto-optimal points, ascending in cost; lower is better in cost and quality.

    No other point is at least as good in both coordinates and better in one.
    """
    order = sorted(range(len(cost)), key=lambda i: (cost[i], quality[i]))
    best, chosen = float("inf"), []
    for i in order:
        if quality[i] < best:
            best = quality[i]
            chosen.append(i)
    return chosen


def hypervolume(cost: Sequence[float], quality: Sequence[float], worst: tuple[float, float]) -> float:
    """Return the area below `worst` = (cost, quality) that some point beats; lower is better in both."""
    chosen = [i for i in front(cost, quality) if cost[i] < worst[0] and quality[i] < worst[1]]
    ends = [*(cost[i] for i in chosen), worst[0]][1:]
    return sum((end - cost[i]) * (worst[1] - quality[i]) for i, end in zip(chosen, ends, strict=True))
