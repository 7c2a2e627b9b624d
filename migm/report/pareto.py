"""Which points no other point beats."""

from collections.abc import Sequence


def front(cost: Sequence[float], quality: Sequence[float]) -> list[int]:
    """Indices of the points that none is at least as good as in both and better in one; lower is better; by cost."""
    order = sorted(range(len(cost)), key=lambda i: (cost[i], quality[i]))
    best, chosen = float("inf"), []
    for i in order:
        if quality[i] < best:
            best = quality[i]
            chosen.append(i)
    return chosen
