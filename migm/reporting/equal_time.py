"""Each method against another at equal time: what the other's Pareto front reaches in the method's own time."""

import math
from collections.abc import Sequence
from itertools import pairwise

from migm.reporting.pareto import front
from migm.reporting.summary import Row, Summary


def interpolate(rows: Sequence[Row], metric: str, sign: int, seconds: float) -> tuple[float, float] | None:
    """Mean and deviation that `rows` reach in a time: their Pareto front, linear in log time between its points.

    `sign` is 1 where higher values are better, else -1. In more time than the dearest point of the
    front takes, that point counts; in less than the cheapest, there is none.
    """
    known = [r for r in rows if r.seconds and metric in r.quality]
    times = [r.seconds or 0.0 for r in known]
    best = [known[i] for i in front(times, [-sign * r.mean(metric) for r in known])]
    for left, right in pairwise(best):
        low, high = left.seconds or 0, right.seconds or 0
        if low <= seconds < high:
            share = math.log(seconds / low) / math.log(high / low)
            mean = (1 - share) * left.mean(metric) + share * right.mean(metric)
            return mean, math.hypot((1 - share) * left.deviation(metric), share * right.deviation(metric))
    if best and seconds >= (best[-1].seconds or 0):
        return best[-1].mean(metric), best[-1].deviation(metric)
    return None


def compare(summary: Summary, metric: str, method: str, others: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """One line per point of `method`: its value and, for each other method, the gain in units of standard deviation.

    The gain is positive where `method` is better; the deviation is that of the difference of two
    measurements, sqrt(s_a^2 + s_b^2).
    """
    sign = 1 if summary.higher_is_better[metric] else -1
    lines = []
    for row in summary.rows:
        if row.accelerator != method or row.seconds is None or metric not in row.quality:
            continue
        cells = [row.label, f"{1e3 * row.seconds:.2f}", f"{row.mean(metric):.3f}"]
        for other in others:
            found = interpolate([r for r in summary.rows if r.accelerator == other], metric, sign, row.seconds)
            cells.append(_gain(row, metric, sign, found))
        lines.append(cells)
    return ["point", "ms / image", metric, *(f"gain on {other} at equal time" for other in others)], lines


def _gain(row: Row, metric: str, sign: int, found: tuple[float, float] | None) -> str:
    if found is None:
        return "no point as cheap"
    gain, spread = sign * (row.mean(metric) - found[0]), math.hypot(row.deviation(metric), found[1])
    return f"{gain:+.3f}" + (f" = {gain / spread:+.1f} deviations" if spread else "")
