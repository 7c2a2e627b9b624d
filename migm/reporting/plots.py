"""Figures of a summary: quality against time and against FFE, with the Pareto front."""

from collections import defaultdict
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

from migm.reporting.front_file import FrontFile
from migm.reporting.pareto import front
from migm.reporting.summary import Row, Summary
from migm.runtime.figures import plt, write_figure

COLOURS = {"vanilla": "#6b7280", "shortcut": "#d1495b", "reuse": "#2e86ab", "no_cross_attention": "#e09f3e"}
MORE = [
    "#2a9d6f",
    "#8e5bd0",
    "#c2702d",
    "#1fa3a3",
    "#c2528f",
    "#7d8f29",
    "#4f6bd8",
    "#a3574a",
    "#12507b",
    "#e08fb5",
    "#6b4423",
    "#98c1d9",
    "#b5a100",
    "#5d5179",
]  # for methods without a colour of their own
# Methods whose points are labelled, and the label's place: vanilla above, the shortcut below its line.
NAMED = {"vanilla": {"xytext": (4, 4)}, "shortcut": {"xytext": (-3, -4), "ha": "right", "va": "top"}}
COSTS = {"time": ("seconds", 1e3, "ms per image"), "ffe": ("ffe", 1.0, "FFE (full-forward equivalents)")}


def colours(methods: Iterable[str]) -> dict[str, str]:
    """Map every method to a colour, in the order of `methods`."""
    further = cycle(MORE)
    return {method: COLOURS.get(method) or next(further) for method in dict.fromkeys(methods)}


def draw_all(summary: Summary, folder: Path, file: FrontFile | None = None) -> list[Path]:
    """Draw one PNG for every measured pair of metric and cost, with the points of a front file -> paths."""
    paths = []
    for metric in summary.metrics():
        for name, (attribute, factor, label) in COSTS.items():
            rows = [r for r in summary.rows if metric in r.quality and getattr(r, attribute) is not None]
            if rows:
                path = folder / f"{metric}_by_{name}.png"
                figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
                if file and name == "time" and file.front.metric == metric:
                    _draw_file(axes, file)
                _draw(axes, rows, metric, summary.higher_is_better[metric], attribute, factor, label)
                write_figure(figure, path)
                paths.append(path)
    return paths


def _draw_file(axes: Any, file: FrontFile) -> None:
    look: dict[str, Any] = {"color": "black", "marker": "d", "markersize": 6, "markerfacecolor": "none"}
    best = sorted((each.ms, each.point.value) for each in file.points if each.best)
    others = [(each.ms, each.point.value) for each in file.points if not each.best]
    axes.plot(*zip(*best, strict=True), linewidth=0.9, label=file.label, **look)
    if others:
        axes.plot(*zip(*others, strict=True), linestyle="", alpha=0.35, **look)


def _draw(axes: Any, rows: list[Row], metric: str, up: bool, attribute: str, factor: float, label: str) -> None:
    groups: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:  # one line for vanilla, one for each N of the others
        groups[row.accelerator, 0 if row.num_full_steps == row.num_steps else row.num_steps].append(row)
    shades = colours(name for name, _ in sorted(groups))
    marks = {n: mark for n, mark in zip(sorted({n for _, n in groups}), "osD^v", strict=False)}
    for (name, n), members in groups.items():
        members = sorted(members, key=lambda r: getattr(r, attribute))
        x = [factor * getattr(r, attribute) for r in members]
        y, error = [r.mean(metric) for r in members], [r.deviation(metric) for r in members]
        look = {"color": shades[name], "marker": marks.get(n, "o"), "markersize": 5}
        axes.errorbar(x, y, error, linestyle="", capsize=2, elinewidth=1, **look)
        # Points that differ in more than B form a cloud: only the group's own front is joined.
        line = front(x, [-v if up else v for v in y]) if any(r.variant for r in members) else range(len(x))
        group = f"{name.replace('_', ' ')}{f' N={n}' if n else ''}"
        axes.plot([x[i] for i in line], [y[i] for i in line], label=group, linewidth=1.2, **look)
        if name in NAMED:
            for r, px, py in zip(members, x, y, strict=True):
                text, where = f"B={r.num_full_steps}" if n else f"N={r.num_steps}", {"fontsize": 7, **NAMED[name]}
                axes.annotate(text, (px, py), textcoords="offset points", color=COLOURS[name], **where)
    axes.set_xscale("log")
    if not up:  # with few steps distances are so large that a linear axis would squeeze the other points
        axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
    axes.tick_params(which="minor", labelsize=7)
    cost = [factor * getattr(r, attribute) for r in rows]
    value = [-r.mean(metric) if up else r.mean(metric) for r in rows]
    chosen = front(cost, value)
    axes.plot(
        [cost[i] for i in chosen],
        [rows[i].mean(metric) for i in chosen],
        "k:",
        linewidth=2.5,
        alpha=0.4,
        label="Pareto front",
    )
    axes.set(xlabel=label, ylabel=f"{metric} ({'higher' if up else 'lower'} is better)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8 if len(groups) < 8 else 6, ncols=1 if len(groups) < 8 else 2)
