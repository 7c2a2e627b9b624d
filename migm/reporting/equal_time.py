"""Compare methods at equal time: a method's value against another method's Pareto front."""

import math
from collections.abc import Sequence
from itertools import pairwise

from migm.reporting.pareto import front
from migm.reporting.summary import Row, Summary


def interpolate(rows: Sequence[Row], metric: str, sign: int, seconds: float) -> tuple[float, float] | None:
    """Return mean and deviation that `rows` reach in `seconds`, on their Pareto front, linear in log time.

    `sign` is 1 where higher values are better, else -1. Beyond the slowest point of the front that point
    counts. Below the fastest point the result is None.
    """
    timed = [r for r in rows if r.seconds and metric in r.quality]
    times = [r.seconds or 0.0 for r in timed]
    best = [timed[i] for i in front(times, [-sign * r.mean(metric) for r in timed])]
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
    """Return headings, and a line per point of `method`: its value, and its gain on each other method.

    The gain is positive where `method` is better. It is also given in units of the deviation of the
    difference, sqrt(s_a^2 + s_b^2).
    """
    sign = 1 if summary.higher_is_better[metric] else -1
    lines = []
    for row in summary.rows:
        if row.accelerator != method or row.seconds is None or metric not in row.quality:
            continue
        cells = [row.label, f"{1e3 * row.seconds:.2f}", f"{row.mean(metric):.3f}"]
        for other in others:
            other_value = interpolate([r for r in summary.rows if r.accelerator == other], metric, sign, row.seconds)
            cells.append(_gain(row, metric, sign, other_value))
        lines.append(cells)
    return ["point", "ms / image", metric, *(f"gain on {other} at equal time" for other in others)], lines


def _gain(row: Row, metric: str, sign: int, other_value: tuple[float, float] | None) -> str:
    if other_value is None:
        return "no point as cheap"
    gain, spread = sign * (row.mean(metric) - other_value[0]), math.hypot(row.deviation(metric), other_value[1])
    return f"{gain:+.3f}" + (f" = {gain / spread:+.1f} deviations" if spread else "")
