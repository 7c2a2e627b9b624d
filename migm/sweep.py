"""Sweeps (`--multirun`): what is left to do, trials that a restart skips, failures that stop no other, the table."""

import hashlib
import itertools
import json
import statistics
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from lightning.fabric.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig
from rich.console import Console

from migm.config import TrainConfig
from migm.report.tables import comma_separated, markdown
from migm.report.trials import Trial, finished_trials, grouped, read_trial, trial_rows, trial_table
from migm.runtime import environment, in_sweep, is_url, launched, write_atomic

ERROR = "error.txt"
GRID = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


class Recorder:
    """Keeps what a training of a sweep comes to, so that the sweep started again skips it; idle outside of sweeps."""

    def __init__(self, config: TrainConfig):
        self.folder, self.max_steps = Path(config.paths["output_dir"]) / config.name, config.trainer["max_steps"]
        self.active, self.start = in_sweep(), time.perf_counter()
        text = json.dumps(asdict(config), sort_keys=True, default=str)
        self.config = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.trial = read_trial(self.folder) if self.active else None

    def finished(self) -> Trial | None:
        """The trial, if it has ended with the same config."""
        if self.trial and self.trial.finished and self.trial.config == self.config:
            Console().print(f"finished already: {self.folder}", soft_wrap=True)
            return self.trial
        return None

    def trained(self, shortcut: torch.nn.Module, error: float, seconds: float | None, device: torch.device) -> None:
        """Note the training; `seconds` None, since this process made no step of it, keeps what was noted before."""
        if not self.active:
            return
        if seconds is None and self.trial:  # of the same training: its checkpoint was accepted
            seconds = self.trial.train_seconds
        about = {**environment(device), "time": time.strftime("%Y-%m-%dT%H:%M:%S")}
        parameters = sum(parameter.numel() for parameter in shortcut.parameters())
        chosen = overrides(HydraConfig.get().overrides.task)
        self.trial = Trial(self.config, chosen, self.max_steps, parameters, error, seconds, about=about)
        self.trial.save(self.folder)

    def end(self) -> None:
        """Everything is done."""
        if self.active and self.trial:
            self.trial.finished, self.trial.seconds = True, round(time.perf_counter() - self.start, 1)
            self.trial.save(self.folder)


class Sweep(Callback):
    """Hydra's callback around a multirun: plan first, errors of trials kept for the end, then the table.

    `folder` is that of the trials. A single run passes through untouched.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.planned: list[DictConfig] = []
        self.keys: list[str] = []  # what differs between trials
        self.training = False

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **kwargs: Any) -> None:
        """Say how many trials there are, how many have ended, and as far as known what the others take."""
        self.folder.mkdir(parents=True, exist_ok=True)  # a sweeper may keep its own state there
        self.training, self.keys = config_name == "train", list(swept(config))
        if config.hydra.sweeper._target_ == GRID:
            self.planned = [compose(config_name, trial, return_hydra_config=True) for trial in grid(config)]
            if self.training and len({cfg.name for cfg in self.planned}) < len(self.planned):
                print(
                    f"error: name={self.planned[0].name} is the folder of several trials; put +sweep= behind "
                    "+experiment=, and name the folder of all by group=",
                    file=sys.stderr,
                )
                sys.exit(2)
            _say(self.plan())

    def plan(self) -> str:
        """Of a grid of trainings: counts, and what the unfinished will take by what finished ones took."""
        done = finished_trials(self.folder)
        left = [cfg for cfg in self.planned if Path(cfg.paths.output_dir) / cfg.name not in done]
        text = f"{len(self.planned)} trials"
        if not self.training:
            return text
        folders = {cfg.data.folder for cfg in left if cfg.data.storage != "online"}
        stores = [folder for folder in folders if not is_url(folder) and not Path(folder).exists()]
        text += f", {len(self.planned) - len(left)} finished"
        text += f", {len(stores)} trajectory stores to collect" if stores else ""
        timed = [trial for trial in done.values() if trial.train_seconds is not None]
        if not left or not timed:
            return text + (": time and disk are known after the first" if left else "")
        rate = statistics.median((trial.train_seconds or 0.0) / trial.max_steps for trial in timed)
        rest = statistics.median(max(trial.seconds - (trial.train_seconds or 0.0), 0.0) for trial in timed)
        size = statistics.median(_bytes(folder) for folder in done) * len(left)
        seconds = sum(rate * cfg.trainer.max_steps + rest for cfg in left)
        return f"{text}: about {timedelta(seconds=round(seconds))} and {size / 1e6:.0f} MB for the others"

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Keep the error of a failed trial for the end; to Hydra it ended, or it would show no table."""
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        if job_return.status == JobStatus.FAILED:
            error = job_return._return_value
            task = config.hydra.overrides.task
            own = [text for text in task if text.lstrip("+").partition("=")[0] in self.keys] or task
            line = f"{' '.join(own)}: {' '.join(str(error).split()) or type(error).__name__}"
            path = Path(config.hydra.runtime.output_dir) / ERROR
            write_atomic(path, line + "\n" + "".join(traceback.format_exception(error)))
            print(f"error: {line}  (where: {path})", file=sys.stderr)
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        elif self.planned:
            _say(self.plan())

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write and print the table of all trials in the folder, list what failed now, and exit with 1 if any did."""
        if launched()[0] == 0 and finished_trials(self.folder):  # of the ranks of torchrun one writes them
            write_tables(self.folder, [key for key in self.keys if key != "seed"])
        failed = sorted(Path(config.hydra.sweep.dir).glob(f"*/{ERROR}"))
        for path in failed:
            print(f"failed: {path.read_text(encoding='utf-8').splitlines()[0]}", file=sys.stderr)
        if failed:
            print(f"failed trials: {len(failed)}; started again, a grid runs them once more", file=sys.stderr)
            sys.exit(1)


def write_tables(folder: Path, keys: list[str]) -> None:
    """`table.md`, `table.csv` and `trials.csv` of a sweep's folder; the first is also printed."""
    groups = grouped(folder, keys)
    table = trial_table(groups, keys)
    write_atomic(folder / "table.md", markdown(*table))
    write_atomic(folder / "table.csv", comma_separated(*table))
    write_atomic(folder / "trials.csv", comma_separated(*trial_rows(groups, keys)))
    print(markdown(*table))
    print(f"trials in {folder / 'table.md'}, mean ± standard deviation over seeds")


def overrides(given: Any) -> dict[str, str]:
    """Key -> value of overrides such as `+a.b=c`."""
    pairs = [text.lstrip("+").partition("=") for text in given if "=" in text]
    return {key: value for key, _, value in pairs}


def swept(config: DictConfig) -> dict[str, Override]:
    """Key without + -> override, of what a multirun's config sweeps over, in order."""
    own: dict[str, Any] = dict(config.hydra.sweeper.get("params") or {})
    given = [*(f"{key}={value}" for key, value in own.items()), *config.hydra.overrides.task]
    last = {override.key_or_group: override for override in OverridesParser.create().parse_overrides(given)}
    chosen = {str(key).lstrip("+") for key in own}
    return {key: override for key, override in last.items() if override.is_sweep_override() or key in chosen}


def grid(config: DictConfig) -> list[list[str]]:
    """Overrides of every trial of Hydra's own sweeper."""
    over = swept(config)
    fixed = [text for text in config.hydra.overrides.task if text.lstrip("+~").partition("=")[0] not in over]
    return [[*fixed, *trial] for trial in itertools.product(*map(_each, over.values()))]


def _each(override: Override) -> list[str]:
    key = override.get_key_element()
    if override.is_sweep_override():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [f"{key}={override.get_value_element_as_str()}"]


@contextmanager
def one_at_a_time(folder: str | Path) -> Iterator[None]:
    """Let trials that run side by side fill a store in turn: the second finds nothing to do."""
    if not in_sweep() or rank_zero_only.rank != 0 or is_url(folder):
        yield
        return
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        yield


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _say(text: str) -> None:
    Console().print(text, soft_wrap=True)
