"""Tables of a summary as headings and cells, and their form in Markdown, LaTeX and CSV."""

import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from itertools import pairwise

from migm.reporting.pareto import front, hypervolume
from migm.reporting.summary import Row, Summary, further_costs, spread, table
from migm.runtime import markup

Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # headings, and one list of cells per row


def markdown(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are aligned to the right."""
    rule = "|" + "|".join(["---"] + ["---:"] * (len(headings) - 1)) + "|"
    lines = ["| " + " | ".join(map(markup.markdown, row)) + " |" for row in [headings, *cells]]
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def latex(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a booktabs tabular, with a rule where the first column, the method, changes."""
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}", r"\toprule", _latex_row(headings), r"\midrule"]
    for before, row in zip([None, *cells[:-1]], cells, strict=True):
        if before and before[0] != row[0]:
            lines.append(r"\midrule")
        lines.append(_latex_row(row))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(markup.latex, cells)) + r" \\"


def comma_separated(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a CSV file's text."""
    buffer = StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([headings, *cells])
    return buffer.getvalue()


def deltas(summary: Summary, baseline: Row) -> Table:
    """Compare every row with the baseline: difference of each metric ± deviation of the difference, speed-up."""
    metrics = [metric for metric in summary.metrics() if metric in baseline.quality]
    headings = ["method", "N", "B", *(f"{metric} - {baseline.label}" for metric in metrics), "speed-up", "FFE share"]
    cells = []
    for row in summary.rows:
        differences = [_delta(row, baseline, metric) if metric in row.quality else "" for metric in metrics]
        speed = f"{baseline.seconds / row.seconds:.2f}x" if row.seconds and baseline.seconds else ""
        share = f"{row.ffe / baseline.ffe:.1%}" if row.ffe and baseline.ffe else ""
        cells.append([row.method, str(row.num_steps), row.shown_full_steps, *differences, speed, share])
    return headings, cells


def best_two(summary: Summary, baseline: Row, shares: Sequence[float] = (0.5, 0.35)) -> Table:
    """Return each method's best points by the first metric within `shares` of the baseline's time (Table 2's form).

    A method without a point that fast is shown by its fastest. A point that is best for both shares is shown once.
    """
    metric = summary.metrics()[0]
    sign, whole = -1 if summary.higher_is_better[metric] else 1, baseline.seconds or 0.0
    chosen = [baseline]
    for method in dict.fromkeys(row.accelerator for row in summary.rows):
        timed = [r for r in summary.rows if r.accelerator == method and metric in r.quality and r.seconds]
        timed.sort(key=lambda row: row.seconds or 0.0)
        for share in shares:
            cheap = [row for row in timed if (row.seconds or 0.0) <= share * whole] or timed[:1]
            best = min(cheap, key=lambda row: sign * row.mean(metric), default=baseline)
            if best not in chosen:
                chosen.append(best)
    headings, cells = table(replace(summary, rows=chosen), baseline)
    speed = [f"{whole / row.seconds:.2f}x" if row.seconds else "" for row in chosen]
    return [*headings, "speed-up"], [[*cell, ratio] for cell, ratio in zip(cells, speed, strict=True)]


def _delta(row: Row, baseline: Row, metric: str) -> str:
    deviation = math.hypot(row.deviation(metric), baseline.deviation(metric))
    shown = f" ± {deviation:.3f}" if len(row.quality[metric]) > 1 and row is not baseline else ""
    return f"{row.mean(metric) - baseline.mean(metric):+.3f}{shown}"


def fronts(summary: Summary) -> Table:
    """List for every metric, cost and method the points on the common front, and the method's hypervolume.

    The hypervolume is the share of a box that the method's points beat. The box reaches from the cheapest to the
    dearest point of all methods, in log cost, and from the worst to the best value. ± is the deviation over the
    seed sets.
    """
    costs = {
        "ms / image": {r.label: r.seconds and 1e3 * r.seconds for r in summary.rows},
        "FFE": {r.label: r.ffe for r in summary.rows},
        **further_costs(summary),
    }
    cells = []
    for metric in summary.metrics():
        for heading, cost_of in costs.items():
            rows = [r for r in summary.rows if metric in r.quality and cost_of[r.label]]
            sign = -1 if summary.higher_is_better[metric] else 1
            cost = [math.log(cost_of[r.label] or 0) for r in rows]
            best = {rows[i].label for i in front(cost, [sign * r.mean(metric) for r in rows])}
            for method in dict.fromkeys(r.accelerator for r in rows):
                members = [i for i, r in enumerate(rows) if r.accelerator == method]
                on_front = [rows[i].label for i in members if rows[i].label in best]
                volume = _volume(rows, cost, members, metric, sign)
                share = f"{len(on_front)} of {len(members)}"
                cells.append([method, metric, heading, share, volume, ", ".join(on_front)])
    return ["method", "metric", "cost", "on the front", "hypervolume", "which"], cells


def _volume(rows: Sequence[Row], cost: Sequence[float], members: Sequence[int], metric: str, sign: int) -> str:
    """Return mean and deviation of the share over seed sets; the means' share where rows differ in seed sets."""
    sets = {len(r.quality[metric]) for r in rows}
    draws = [[sign * r.mean(metric) for r in rows]]
    if len(sets) == 1:
        draws = [[sign * value for value in values] for values in zip(*(r.quality[metric] for r in rows), strict=True)]
    shares = []
    for values in draws:
        box = (max(cost) - min(cost)) * (max(values) - min(values))
        area = hypervolume([cost[i] for i in members], [values[i] for i in members], (max(cost), max(values)))
        shares.append(area / box if box else 0.0)
    return spread(shares, 3)


def equal_time(summary: Summary) -> str:
    """Return Markdown tables that compare each other method with vanilla and reuse at equal time, per metric."""
    methods = sorted({row.accelerator for row in summary.rows} - {"vanilla", "reuse"})
    pairs = [(metric, method) for metric in summary.metrics() for method in methods]
    return "\n".join(markdown(*compare(summary, metric, method, ["vanilla", "reuse"])) for metric, method in pairs)


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


def compare(summary: Summary, metric: str, method: str, others: Sequence[str]) -> Table:
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
    gain, deviation = sign * (row.mean(metric) - other_value[0]), math.hypot(row.deviation(metric), other_value[1])
    return f"{gain:+.3f}" + (f" = {gain / deviation:+.1f} deviations" if deviation else "")
