"""Show placed full steps: a table of predicted errors, and a figure of the errors that they follow from."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from migm.accelerators.refresh import Uniform
from migm.analyses.plans import Plans, Row
from migm.runtime.figures import panels, plain_ticks, write_figure

TITLES = {
    "kl_revealed": "KL of the tokens that a step reveals, nats",
    "kl_masked": "mean KL of masked tokens, nats",
    "error": "squared error of features",
}


def shown(rows: Sequence[Row], firsts: Sequence[int]) -> Table:
    """Return the predicted errors of every B: placed, judged by other images, uniform, interval, other firsts."""
    least, *others = sorted(set(firsts))
    of = {(row["num_full_steps"], row["first"]): row for row in rows}
    named = [f"first {first}" for first in others]
    table = Table("B", "full steps", "placed", "on other images", "uniform", "interval", "rule", *named)
    for row in (row for row in rows if row["first"] == least):
        b = row["num_full_steps"]
        values = [row["error"], row["held_out"], row["uniform"], row["interval"]]
        more = [of.get((b, first), {}).get("error") for first in others]
        steps = " ".join(map(str, row["steps"]))
        cells = [*map(number, values), row["interval_of"], *map(number, more)]
        table.add_row(str(b), steps, *cells)
    return table


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def draw(plans: Plans, rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw the mean errors by last full step and g, the chosen plans, and what is predicted of them."""
    least = min(row["first"] for row in rows)
    own, n = [row for row in rows if row["first"] == least], plans.num_steps
    figure, (heat, steps, totals) = panels(3, 5.6, 4.8)
    errors = plans.map().T
    errors = errors.where(errors > 0, torch.nan)  # no logarithm
    extent, scale = (-0.5, n - 0.5, 0.5, n + 0.5), LogNorm() if errors.isfinite().any() else None
    bar = figure.colorbar(
        heat.imshow(errors.numpy(), norm=scale, origin="lower", aspect="auto", extent=extent), ax=heat
    )
    plain_ticks(bar.ax.yaxis)
    mean = ", mean over full steps before" if plans.memory > 1 else ""
    heat.set(xlabel=f"last full step s{mean}", ylabel="steps since, g", ylim=(0.5, plans.max_gap + 0.5))
    heat.set_title(title, fontsize=9)
    for row in own:
        b = row["num_full_steps"]
        uniform = Uniform(b).steps(n)
        steps.scatter(uniform, [b] * b, s=26, facecolors="none", edgecolors="0.6", linewidths=0.8)
        steps.scatter(row["steps"], [b] * b, s=9, color="C0")
    steps.scatter([], [], s=9, color="C0", label="placed")
    steps.scatter([], [], s=26, facecolors="none", edgecolors="0.6", label="uniform")
    steps.set(xlabel="step", ylabel="full steps B")
    for name, colour in (("error", "C0"), ("held_out", "C2"), ("uniform", "0.6"), ("interval", "C1")):
        known = [(row["num_full_steps"], row[name]) for row in own if row[name]]
        label = {"error": "placed", "held_out": "placed, judged by other images"}.get(name, name)
        totals.plot(*zip(*known, strict=True) if known else ([], []), marker=".", color=colour, label=label)
    totals.set(
        xlabel="full steps B", ylabel=f"predicted {'maximum' if plans.total == 'max' else 'sum'} over cheap steps"
    )
    if any(row["error"] for row in own):
        totals.set_yscale("log")
        plain_ticks(totals.yaxis)
    for axis in (heat, steps):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in (steps, totals):
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8)
    write_figure(figure, path)
