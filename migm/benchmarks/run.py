"""Parts of `migm.bench`: measure, print a table, append JSON lines."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from migm.benchmarks import loading, waiting
from migm.config.building import build
from migm.config.roots import BenchConfig
from migm.runtime.console import Plain
from migm.runtime.jsonl import append_line
from migm.runtime.progress import progress
from migm.runtime.provenance import environment
from migm.runtime.writing import writing
from migm.sampling.sampler import Sampler


def bench_loading(config: BenchConfig) -> None:
    """Measure the cost of pairs, print a table, draw a figure, append JSON lines to `output`."""
    sampler = Sampler(build(config.base), build(config.sampling), runtime=build(config.runtime))
    data = build(config.data)
    base = sampler.base
    shortcut, objective = build(config.shortcut), build(config.objective)
    train = loading.training_step(base, shortcut, objective, build(config.optimizer)(shortcut.named_parameters()))
    data.attach(sampler, config.seed)
    shared = {"base": base.fingerprint(), "tokens": base.spec.num_tokens, "channels": base.spec.channels}
    shared |= {"batch_size": data.batch_size, "num_workers": data.num_workers}
    benchmark = build(config.loading)
    figure = Path(config.output).with_name("loading.png")
    with writing(figure, f"output={config.output}"):
        rows = kept(
            config, benchmark.measure_pairs(sampler, data, train), benchmark.num_rows(data), shared, base.device
        )
        loading.draw(rows, figure)
    loading.show(rows, f"{config.name}, {environment(base.device)['device']}")


def bench_waiting(config: BenchConfig) -> None:
    """Measure the cost of waiting threads, print a table, append JSON lines to `output`."""
    benchmark, device = build(config.waiting), torch.device("cpu")
    rows = kept(config, benchmark.measure_threads(config), benchmark.num_rows(), {}, device)
    waiting.show(rows, f"{config.name}, {environment(device)['device']}")


def kept(
    config: BenchConfig, measured: Iterator[dict[str, Any]], count: int, shared: dict[str, Any], device: torch.device
) -> list[dict[str, Any]]:
    """Return the `count` rows of a measurement, each appended to `output` as soon as it is measured."""
    rows, path = [], Path(config.output)
    with progress(Plain(), "parts") as bar:
        for row in bar.track(measured, count, description=config.part):
            rows.append({**row, **shared})
            append_line(path, {**rows[-1], **environment(device), "time": time.strftime("%Y-%m-%dT%H:%M:%S")})
    Plain().print(f"appended to {path}")
    return rows
