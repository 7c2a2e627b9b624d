"""Ablations of a shortcut: sweeps of trainings against one reference, over width, depth and length of training."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, LogLocator

from migm.evaluation.results import read
from migm.reporting.summary import Row, deviation, spread, summarise
from migm.reporting.tables import Table, comma_separated, markdown
from migm.reporting.trials import GROUP_HEADINGS, Group, grouped, metrics_of, shown_group, trial_rows
from migm.runtime.errors import UserError
from migm.runtime.figures import plt, write_figure
from migm.runtime.files import write_atomic
from migm.runtime.owned import only, own

Sweeps = dict[str, list[Group]]  # name of a sweep -> its trials, grouped over seeds
R, D = "shortcut.bottleneck_ratio", "shortcut.depth"


def write_ablations(experiment: Path, sweeps: Sequence[str], reference: str, folder: Path) -> None:
    """Write `ablations.md` and `.csv`, `trials.csv` and figures of the sweeps below an experiment's folder.

    `reference` names the trials to compare with, such as `ablation_rd/r2_d1`; UserError if they do not exist.
    Points of the experiment itself (vanilla, reuse), if any, come first. A sweep without trials is left out.
    """
    groups_by_sweep = {name: groups for name in sweeps if (groups := grouped(experiment / name))}
    sweep, _, name = reference.partition("/")
    chosen = [group for group in groups_by_sweep.get(sweep, []) if group.values == (name,)]
    if not chosen:
        names = [f"{sweep}/{group.values[0]}" for sweep, groups in groups_by_sweep.items() for group in groups]
        raise UserError(f"reference={reference} has no finished trial in {experiment}; there are: {', '.join(names)}")
    results = experiment / "results.jsonl"
    rows = summarise(read(results)).rows if results.exists() else []
    table = ablation_table(groups_by_sweep, chosen[0], rows)
    own(folder, "ablations", "folder", only(folder, r"ablations\.(md|csv)|trials\.csv|(rd|length)_\w+\.png"))
    write_atomic(folder / "ablations.md", markdown(*table))
    write_atomic(folder / "ablations.csv", comma_separated(*table))
    all_groups = [group for groups in groups_by_sweep.values() for group in groups]
    write_atomic(folder / "trials.csv", comma_separated(*trial_rows(all_groups, ["trial"])))
    for metric in ["feature_mse", *metrics_of(all_groups)]:
        if "ablation_rd" in groups_by_sweep:
            _draw_grid(groups_by_sweep["ablation_rd"], metric, folder / f"rd_{metric}.png")
        if "ablation_length" in groups_by_sweep:
            _draw_length([*groups_by_sweep["ablation_length"], chosen[0]], metric, folder / f"length_{metric}.png")
    print(markdown(*table))
    print(f"table and figures in {folder}")


def ablation_table(sweeps: Sweeps, reference: Group, points: Sequence[Row] = ()) -> Table:
    """Return a table of mean ± standard deviation over seeds, and of differences to the reference by seed."""
    metrics = metrics_of([group for groups in sweeps.values() for group in groups])
    compared = {"feature_mse": 5, **dict.fromkeys(metrics, 3)}  # -> digits
    changes = [f"{metric} - reference" for metric in compared]
    headings = ["sweep", "trial", *GROUP_HEADINGS, *metrics, *changes, "FFE", "training s"]
    cells = []
    for row in points:
        measured = [f"{row.mean(metric):.3f}" if metric in row.quality else "" for metric in metrics]
        ffe = "" if row.ffe is None else f"{row.ffe:.2f}"
        cells.append(["", row.label, "", "", "", *measured, *[""] * len(compared), ffe, ""])
    for sweep, groups in sweeps.items():
        for group in groups:
            is_reference = group is reference
            changed = [
                "" if is_reference else spread(differences(group, reference, m), digits)
                for m, digits in compared.items()
            ]
            cells.append(
                [
                    sweep.removeprefix("ablation_"),
                    group.values[0] + " (reference)" * is_reference,
                    *shown_group(group, metrics),
                    *(f"+{text}" if text and text[0] != "-" else text for text in changed),
                    spread(group.costs("ffe")[:1], 2),
                    spread(group.train_seconds(), 0),
                ]
            )
    return headings, cells


def values(group: Group, metric: str) -> list[float]:
    """Return one value per trial: a quality metric, or `feature_mse`."""
    return [trial.feature_mse for trial in group.trials] if metric == "feature_mse" else group.quality(metric)


def differences(group: Group, reference: Group, metric: str) -> list[float]:
    """Return metric minus the reference's, for each seed that both have.

    Trials of one seed share trajectories, so much of the deviation cancels.
    """
    before = dict(zip(reference.seeds(), values(reference, metric), strict=False))
    now = zip(group.seeds(), values(group, metric), strict=False)
    return [value - before[seed] for seed, value in now if seed in before]


def _draw_grid(groups: Sequence[Group], metric: str, path: Path) -> None:
    """Draw the metric against parameters and against FFE, one line per depth, points labelled by R."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
    costs = [("parameters", [float(g.trials[0].parameters) for g in groups])]
    if all(group.costs("ffe") for group in groups):
        costs.append(("FFE (full-forward equivalents)", [group.costs("ffe")[0] for group in groups]))
    for axes, (label, cost) in zip(panels, costs, strict=False):
        for depth in sorted({group.trials[0].overrides.get(D, "") for group in groups}):
            members = [i for i, group in enumerate(groups) if group.trials[0].overrides.get(D, "") == depth]
            members.sort(key=lambda i: cost[i])
            _errors(axes, [cost[i] for i in members], [values(groups[i], metric) for i in members], f"D = {depth}")
            for i in members:
                at = (cost[i], statistics.fmean(values(groups[i], metric)))
                ratio = groups[i].trials[0].overrides.get(R, "")
                axes.annotate(f"R={ratio}", at, xytext=(5, 5), textcoords="offset points", fontsize=8)
        axes.set(xlabel=label, xscale="log" if label == "parameters" else "linear")
        axes.margins(x=0.15)  # room for the names
        if label == "parameters":
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.xaxis.set_minor_formatter("")
    panels[0].set_ylabel(metric)
    panels[0].legend(frameon=False)
    write_figure(figure, path)


def _draw_length(groups: Sequence[Group], metric: str, path: Path) -> None:
    """Draw the metric against the number of training steps."""
    groups = sorted(groups, key=lambda group: group.trials[0].max_steps)
    figure, axes = plt.subplots(figsize=(5, 3.8), layout="constrained")
    _errors(axes, [group.trials[0].max_steps for group in groups], [values(group, metric) for group in groups], "")
    axes.set(xlabel="steps of training", xscale="log", ylabel=metric)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xticks([group.trials[0].max_steps for group in groups])
    write_figure(figure, path)


def _errors(axes: Axes, x: Sequence[float], measured: Sequence[Sequence[float]], label: str) -> None:
    mean = [statistics.fmean(values) for values in measured]
    error = [deviation(values) for values in measured]
    axes.errorbar(x, mean, error, marker="o", markersize=5, capsize=2, linewidth=1.2, label=label)
    axes.grid(alpha=0.25)
