"""Trials of a sweep: the file that each leaves behind, and the table of all, over seeds."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from migm.evaluation.results import read
from migm.reporting.summary import Row, spread, summarise
from migm.reporting.tables import Table
from migm.runtime.errors import UserError
from migm.runtime.files import write_json
from migm.runtime.reading import read_text

FORMAT = "migm-trial/1"
FILE = "trial.json"
GROUP_HEADINGS = ("seeds", "parameters", "feature_mse")


@dataclass
class Trial:
    """One training: its overrides and outcome; its qualities and costs are in `results.jsonl`."""

    config: str  # hash of the resolved config
    overrides: dict[str, str]  # key -> value as given, without a leading +
    max_steps: int
    parameters: int
    feature_mse: float  # on the validation images
    train_seconds: float | None  # all steps at the last process's rate; None: it made no step
    seconds: float = 0.0  # whole duration of the last process
    finished: bool = False
    about: dict[str, str] = field(default_factory=dict)  # device, versions, time

    def save(self, folder: Path) -> None:
        """Replace the folder's `trial.json`."""
        write_json(folder / FILE, {"format": FORMAT, **asdict(self)})


def read_trial(folder: Path) -> Trial | None:
    """Read the trial of a folder; None without a file, UserError for a damaged one."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        values = json.loads(read_text(path))
        if values.pop("format") != FORMAT:
            raise UserError(f"{path} is not of format {FORMAT}; delete it to run the trial again")
        return Trial(**values)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no record of a trial ({error}); delete it to run the trial again") from error


def finished_trials(sweep: Path) -> dict[Path, Trial]:
    """Map folder to trial, for the finished trials below a sweep's folder."""
    trials = {path.parent: read_trial(path.parent) for path in sorted(sweep.glob(f"*/{FILE}"))}
    return {folder: trial for folder, trial in trials.items() if trial and trial.finished}


@dataclass
class Group:
    """Trials at one point that differ only in their seed; lists hold a value per trial."""

    values: tuple[str, ...]  # one per swept key
    label: str  # label of the point; empty where nothing was measured
    trials: list[Trial] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def seeds(self) -> list[str]:
        return [trial.overrides.get("seed", "") for trial in self.trials]

    def quality(self, metric: str) -> list[float]:
        """Return a mean over seed sets per trial."""
        return [row.mean(metric) for row in self.rows if metric in row.quality]

    def train_seconds(self) -> list[float]:
        return [trial.train_seconds for trial in self.trials if trial.train_seconds is not None]

    def costs(self, name: str) -> list[float]:
        """Return `seconds` or `ffe` of the rows that have it."""
        return [value for row in self.rows if (value := getattr(row, name)) is not None]


def grouped(sweep: Path, keys: Sequence[str] = ()) -> list[Group]:
    """Group a sweep's finished trials by the values of `keys`, in order; without keys by their folders' names."""
    groups: dict[tuple[Any, ...], Group] = {}
    for folder, trial in finished_trials(sweep).items():
        values = tuple(trial.overrides.get(key, "") for key in keys) or (folder.name.rpartition("_seed")[0],)
        results = folder / "results.jsonl"
        rows = summarise(read(results)).rows if results.exists() else []
        for row in rows or [None]:
            label = row.label if row else ""
            group = groups.setdefault((values, label), Group(values, label))
            group.trials.append(trial)
            group.rows += [row] if row else []
    return sorted(groups.values(), key=lambda group: (*map(_order, group.values), group.label))


def shown_group(group: Group, metrics: Sequence[str]) -> list[str]:
    """Return the cells of GROUP_HEADINGS and of the `metrics`, mean ± standard deviation over seeds."""
    errors = spread([trial.feature_mse for trial in group.trials], 4)
    qualities = [spread(group.quality(metric), 3) for metric in metrics]
    return [str(len(group.trials)), f"{group.trials[0].parameters:,}", errors, *qualities]


def trial_table(groups: Sequence[Group], keys: Sequence[str]) -> Table:
    """Return one row per group: mean ± standard deviation over seeds."""
    metrics = metrics_of(groups)
    headings = [*(key.split(".")[-1] for key in keys), "point", *GROUP_HEADINGS, *metrics]
    cells = []
    for group in groups:
        milliseconds = [1e3 * seconds for seconds in group.costs("seconds")]
        costs = [spread(milliseconds, 2), spread(group.costs("ffe"), 2), spread(group.train_seconds(), 0)]
        cells.append([*group.values, group.label, *shown_group(group, metrics), *costs])
    return [*headings, "ms / image", "FFE", "training s"], cells


def trial_rows(groups: Sequence[Group], keys: Sequence[str]) -> Table:
    """Return one row per trial and point, with all digits."""
    metrics = metrics_of(groups)
    headings = [*keys, "seed", "point", "parameters", "feature_mse", *metrics, "seconds", "ffe", "train_seconds"]
    cells = []
    for group in groups:
        for i, trial in enumerate(group.trials):
            row = group.rows[i] if group.rows else Row("", 0, 0)
            measured = [row.mean(metric) if metric in row.quality else "" for metric in metrics]
            values = [trial.parameters, trial.feature_mse, *measured, row.seconds, row.ffe, trial.train_seconds]
            shown = ["" if value is None else str(value) for value in values]
            cells.append([*group.values, trial.overrides.get("seed", ""), group.label, *shown])
    return headings, cells


def metrics_of(groups: Sequence[Group]) -> list[str]:
    """Return the quality metrics that any group has."""
    return list(dict.fromkeys(metric for group in groups for row in group.rows for metric in row.quality))


def _order(value: str) -> tuple[int, float, str]:
    """Return a sort key: numbers by size before words, and whole numbers within words by size."""
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, re.sub(r"\d+", lambda digits: digits[0].zfill(12), value)
