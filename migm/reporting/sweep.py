"""Sweeps (`--multirun`): plan trials, skip finished ones, survive failed ones, and write the table."""

import itertools
import json
import os
import statistics
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from migm.config.building import class_of
from migm.config.checks import sweeps_grid
from migm.config.roots import TrainConfig
from migm.reporting.tables import comma_separated, markdown
from migm.reporting.trials import Trial, finished_trials, grouped, read_trial, trial_rows, trial_table
from migm.runtime.console import Plain
from migm.runtime.errors import UserError
from migm.runtime.files import content_hash, write_atomic
from migm.runtime.launch import in_sweep, launched
from migm.runtime.provenance import environment
from migm.runtime.writing import refuse_unwritable

ERROR = "error.txt"
# Command -> keys of the paths whose content another run of the command would replace. Files that are only
# appended to (results of evaluate, rows of bench, the store of collect) are left out.
OWN = {
    "ablations": ("folder",),
    "analyse": ("folder",),
    "calibrate": ("output",),
    "collect": ("export_to",),
    "generate": ("output", "folder"),
    "humaneval": ("folder",),
    "place": ("place.output",),
    "pretrain": ("pretrain.folder", "pretrain.assets"),
    "report": ("folder",),
    "train": ("name",),
}


class TrialRecorder:
    """Record the outcome of a trial, so that a restarted sweep skips it; does nothing outside of sweeps."""

    def __init__(self, config: TrainConfig):
        self.folder, self.max_steps = Path(config.paths["output_dir"]) / config.name, config.trainer["max_steps"]
        self.active, self.start = in_sweep(), time.perf_counter()
        self.config = content_hash(json.dumps(asdict(config), sort_keys=True, default=str))
        self.trial = read_trial(self.folder) if self.active else None

    def finished(self) -> Trial | None:
        """Return the trial if it has finished with the same config."""
        if self.trial and self.trial.finished and self.trial.config == self.config:
            Plain().print(f"finished already: {self.folder}")
            return self.trial
        return None

    def trained(self, shortcut: torch.nn.Module, error: float, seconds: float | None, device: torch.device) -> None:
        """Record the training; `seconds` None (this process made no step) keeps the time recorded before."""
        if not self.active:
            return
        if seconds is None and self.trial:  # the same training, since its checkpoint was accepted
            seconds = self.trial.train_seconds
        about = {**environment(device), "time": time.strftime("%Y-%m-%dT%H:%M:%S")}
        parameters = sum(parameter.numel() for parameter in shortcut.parameters())
        task_overrides = overrides(HydraConfig.get().overrides.task)
        self.trial = Trial(self.config, task_overrides, self.max_steps, parameters, error, seconds, about=about)
        self.trial.save(self.folder)

    def end(self) -> None:
        """Mark the trial as finished."""
        if self.active and self.trial:
            self.trial.finished, self.trial.seconds = True, round(time.perf_counter() - self.start, 1)
            self.trial.save(self.folder)


class Sweep(Callback):
    """Hydra's callback around a multirun: print the plan, keep trials' errors for the end, write the table.

    A single run is left alone.
    """

    folder: Path  # parent of the trials' folders

    def __init__(self) -> None:
        self.planned: list[DictConfig] = []
        self.keys: list[str] = []  # keys that differ between trials
        self.training = False

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **kwargs: Any) -> None:
        """Print the numbers of trials and finished trials, and if known the time that the others will take."""
        try:
            refuse_unwritable(config.hydra.sweep.dir, f"paths.output_dir={config.paths.output_dir}", folder=True)
            self.training, self.keys = config_name == "train", list(swept(config))
            if sweeps_grid(config.hydra):
                self.planned = [compose(config_name, trial, return_hydra_config=True) for trial in grid(config)]
                refuse_shared(str(config_name), self.planned, self.keys)
            self.folder = Path(config.paths.output_dir) / config.group
            self.folder.mkdir(parents=True, exist_ok=True)  # a sweeper may keep its own state there
        except UserError as error:  # Hydra turns a callback's exception into a warning
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        if self.planned:
            Plain().print(self.plan())

    def plan(self) -> str:
        """Return the plan of a grid: counts, and time and disk of unfinished trainings from finished ones."""
        done = finished_trials(self.folder)
        unfinished = [cfg for cfg in self.planned if Path(cfg.paths.output_dir) / cfg.name not in done]
        text = f"{len(self.planned)} trials"
        if not self.training:
            return text
        collected = [cfg.data for cfg in unfinished if class_of(cfg.data.storage).stores]
        folders = {data.folder for data in collected if not class_of(data.source).read_only}
        stores = [folder for folder in folders if not Path(folder).exists()]
        text += f", {len(self.planned) - len(unfinished)} finished"
        text += f", {len(stores)} trajectory stores to collect" if stores else ""
        timed = [trial for trial in done.values() if trial.train_seconds is not None]
        if not unfinished or not timed:
            return text + (": time and disk are known after the first" if unfinished else "")
        rate = statistics.median((trial.train_seconds or 0.0) / trial.max_steps for trial in timed)
        rest = statistics.median(max(trial.seconds - (trial.train_seconds or 0.0), 0.0) for trial in timed)
        size = statistics.median(_bytes(folder) for folder in done) * len(unfinished)
        seconds = sum(rate * cfg.trainer.max_steps + rest for cfg in unfinished)
        return f"{text}: about {timedelta(seconds=round(seconds))} and {size / 1e6:.0f} MB for the others"

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Keep the error of a failed trial for the end, and report success to Hydra, which else shows no table."""
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        if job_return.status == JobStatus.FAILED:
            error = job_return._return_value
            task = written_overrides(config)
            varying = [text for text in task if text.lstrip("+").partition("=")[0] in self.keys] or task
            line = f"{' '.join(varying)}: {' '.join(str(error).split()) or type(error).__name__}"
            path = Path(config.hydra.runtime.output_dir) / ERROR
            write_atomic(path, line + "\n" + "".join(traceback.format_exception(error)))
            print(f"error: {line}  (where: {path})", file=sys.stderr)
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        elif self.planned:
            Plain().print(self.plan())

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write and print the table of all trials in the folder, list failures of this run, exit with 1 if any."""
        if launched()[0] == 0 and finished_trials(self.folder):  # only one of torchrun's ranks writes
            write_tables(self.folder, [key for key in self.keys if key != "seed"])
        failed = sorted(Path(config.hydra.sweep.dir).glob(f"*/{ERROR}"))
        for path in failed:
            print(f"failed: {path.read_text(encoding='utf-8').splitlines()[0]}", file=sys.stderr)
        if failed:
            print(f"failed trials: {len(failed)}; started again, a grid runs them once more", file=sys.stderr)
            sys.exit(1)


def refuse_shared(command: str, jobs: Sequence[DictConfig], keys: Sequence[str]) -> None:
    """Raise UserError where jobs of a sweep over `keys` would replace each other's output.

    `jobs` are composed with Hydra's node.
    """
    for key in OWN.get(command, ()):
        counts = Counter(place for job in jobs if (place := _place(job, key)) is not None)
        (place, number), *_ = counts.most_common(1) or [("", 0)]
        if number < 2:
            continue
        value = next(str(OmegaConf.select(job, key)) for job in jobs if _place(job, key) == place)
        choices = jobs[0].hydra.runtime.choices
        varying = "_".join(f"${{migm_choice:{name}}}" if name in choices else f"${{{name}}}" for name in keys)
        stem, suffix = os.path.splitext(value) if key == "output" else (value, "")
        example = f"let it vary, such as '{key}={stem}_{varying}{suffix}'"
        if key == "name":
            sweep = "put +sweep= behind +experiment=, and name the folder of all by group="
            raise UserError(f"name={value} is the folder of several trials; {sweep}; or {example}")
        raise UserError(
            f"{key}={value} is where {number} of {len(jobs)} jobs would write, each replacing the last; {example}"
        )


def _place(job: DictConfig, key: str) -> str | None:
    """Return where a job writes; None where it writes nothing or only the running job knows (`${hydra.job.num}`)."""
    try:
        value = OmegaConf.select(job, key)
        whole = Path(job.paths.output_dir) / value if key == "name" else value
    except (OmegaConfBaseException, TypeError):
        return None
    return os.path.abspath(whole) if whole else None


def write_tables(folder: Path, keys: list[str]) -> None:
    """Write `table.md`, `table.csv` and `trials.csv` of a sweep's folder, and print the first."""
    groups = grouped(folder, keys)
    table = trial_table(groups, keys)
    write_atomic(folder / "table.md", markdown(*table))
    write_atomic(folder / "table.csv", comma_separated(*table))
    write_atomic(folder / "trials.csv", comma_separated(*trial_rows(groups, keys)))
    print(markdown(*table))
    print(f"trials in {folder / 'table.md'}, mean ± standard deviation over seeds")


def overrides(task: Any) -> dict[str, str]:
    """Map key to value of overrides such as `+a.b=c`."""
    pairs = [text.lstrip("+").partition("=") for text in task if "=" in text]
    return {key: value for key, _, value in pairs}


def written_overrides(config: DictConfig) -> list[str]:
    """Return the overrides as written, unresolved: the resolved values differ from trial to trial."""
    return cast(list[str], OmegaConf.to_container(config.hydra.overrides.task, resolve=False))


def swept(config: DictConfig) -> dict[str, Override]:
    """Map key without + to override, in order, for the keys that a multirun's config sweeps over."""
    params: dict[str, Any] = dict(config.hydra.sweeper.get("params") or {})
    texts = [*(f"{key}={value}" for key, value in params.items()), *written_overrides(config)]
    last = {override.key_or_group: override for override in OverridesParser.create().parse_overrides(texts)}
    param_keys = {str(key).lstrip("+") for key in params}
    return {key: override for key, override in last.items() if override.is_sweep_override() or key in param_keys}


def grid(config: DictConfig) -> list[list[str]]:
    """Return the overrides of every trial of Hydra's own sweeper."""
    over = swept(config)
    fixed = [text for text in written_overrides(config) if text.lstrip("+~").partition("=")[0] not in over]
    return [[*fixed, *trial] for trial in itertools.product(*map(_assignments, over.values()))]


def _assignments(override: Override) -> list[str]:
    key = override.get_key_element()
    if override.is_sweep_override():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [f"{key}={override.get_value_element_as_str()}"]


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
