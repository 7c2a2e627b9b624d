"""Cost of waiting threads: a training step and a full step, alone and beside another job, by OpenMP's settings.

OpenMP's threads spin between two operations, since spinning is quicker than sleeping. Beside another job the
threads and the job slow each other down. OpenMP reads the settings when it is loaded, so each setting runs in
a process of its own.
"""

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from subprocess import Popen
from typing import Any

import torch
from rich.table import Table

from migm import SPINS
from migm.bases.base import Moment
from migm.benchmarks.loading import BenchRow, random_trajectories, training_step
from migm.config.building import build
from migm.config.roots import BenchConfig
from migm.evaluation.cost import synchronise
from migm.runtime.console import Plain
from migm.runtime.kinds import Count, Threads
from migm.sampling.sampler import Sampler
from migm.trajectories.dataset import InMemory, PairDataset

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
SETTINGS: dict[str, dict[str, str]] = {
    "OpenMP's own": {"GOMP_SPINCOUNT": "300000"},  # libgomp's default
    "10,000 rounds": {"GOMP_SPINCOUNT": "10000"},
    "migm's": {"GOMP_SPINCOUNT": SPINS},
    "100 rounds": {"GOMP_SPINCOUNT": "100"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}


@dataclass(frozen=True)
class Waiting:
    """Repetitions of each setting: `rounds` in which the settings take turns, `steps` in each round."""

    steps: Count
    rounds: Count
    threads: Threads

    def measure_threads(self, config: BenchConfig) -> Iterator[BenchRow]:
        """Yield a row for every process; the last setting has one thread."""
        cases = [(name, env, self.threads) for name, env in SETTINGS.items()] + [("one thread", {}, 1)]
        for round_ in range(self.rounds):
            for others in (0, 1):
                for name, env, threads in cases:
                    with beside(others), started_with(env):
                        train, full = in_process(step_seconds, config, threads, self.steps)
                    milliseconds = {"train_ms": 1e3 * train, "full_ms": 1e3 * full}
                    about = {"setting": name, **env, "threads": threads, "other_jobs": others, "round": round_}
                    yield {"part": "threads", **about, **milliseconds}

    def num_rows(self) -> int:
        """Return the number of rows that `measure_threads` yields."""
        return self.rounds * 2 * (len(SETTINGS) + 1)


def step_seconds(config: BenchConfig, threads: int, steps: int) -> tuple[float, float]:
    """Return median seconds of a training step and of a full step of the base, in this process.

    The batch has `data.batch_size` pairs.
    """
    torch.set_num_threads(threads)
    sampler = Sampler(build(config.base), build(config.sampling), runtime=build(config.runtime))
    data = build(config.data)
    base, shortcut = sampler.base, build(config.shortcut)
    optimizer = build(config.optimizer)(shortcut.named_parameters())
    train = training_step(base, shortcut, build(config.objective), optimizer)
    images = -(-data.batch_size // (2 * (sampler.num_steps - 1)))
    data.serve(shortcut)
    pairs = PairDataset(InMemory(next(random_trajectories(sampler, data, images, torch.bfloat16))), gaps=data.gaps)
    chosen = pairs.drawn(torch.arange(min(data.batch_size, len(pairs))), torch.Generator().manual_seed(0))
    batch = pairs.__getitems__(chosen.tolist())
    b = len(batch.steps)
    branch = base.encode(data.inputs(torch.arange(b)), guided=False)[0]
    moment = Moment.at(0, sampler.num_steps, torch.full((b,), 0.5, device=base.device))

    @torch.inference_mode()
    def full() -> None:
        base.features(batch.tokens.to(base.device), branch, moment)
        synchronise(base.device)

    return timed(lambda: train(batch), steps), timed(full, steps)


def timed(job: Callable[[], object], steps: int) -> float:
    """Return median seconds of a call, after three calls to warm up."""
    seconds = []
    for _ in range(steps + 3):
        start = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])


def in_process(job: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a call in a new process, which gets the current environment."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(job, *arguments).result()


@contextmanager
def beside(others: int) -> Iterator[None]:
    """Run `others` busy processes while the block runs."""
    with ExitStack() as stack:
        for _ in range(others):
            busy = Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(busy.wait)
            stack.callback(busy.kill)
        yield


@contextmanager
def started_with(chosen: dict[str, str]) -> Iterator[None]:
    """Set OpenMP's variables to `chosen` alone while the block runs, for processes that start in it."""
    before = {name: os.environ.pop(name) for name in NAMES if name in os.environ}
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name in NAMES:
            os.environ.pop(name, None)
        os.environ.update(before)


def show(rows: Sequence[BenchRow], title: str) -> None:
    """Print the medians over the rounds."""
    table = Table(
        "setting", "threads", "training step, ms", "beside a job", "full step, ms", "beside a job", title=title
    )
    for name, threads in dict.fromkeys((row["setting"], row["threads"]) for row in rows):
        cells = [
            statistics.median(row[key] for row in rows if (row["setting"], row["other_jobs"]) == (name, others))
            for key in ("train_ms", "full_ms")
            for others in (0, 1)
        ]
        table.add_row(name, str(threads), *(f"{cell:.0f}" for cell in cells))
    Plain().print(table)
