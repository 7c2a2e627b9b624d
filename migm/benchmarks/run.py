"""The parts of `migm.bench`: each measured, printed as a table, appended as JSON lines."""

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


def bench_loading(config: BenchConfig) -> None:
    """Measure what pairs cost, print a table, append JSON lines to `output`."""
    base, sampling, data = build(config.base), build(config.sampling), build(config.data)
    shortcut, objective = build(config.shortcut), build(config.objective)
    train = loading.training_step(base, shortcut, objective, build(config.optimizer)(shortcut.named_parameters()))
    data.attach(base, sampling, config.seed)
    shared = {"base": base.fingerprint(), "tokens": base.spec.num_tokens, "channels": base.spec.channels}
    shared |= {"batch_size": data.batch_size, "num_workers": data.num_workers}
    measured = build(config.loading)
    figure = Path(config.output).with_name("loading.png")
    with writing(figure, f"output={config.output}"):
        rows = kept(config, measured.measure(base, sampling, data, train), measured.rows(base), shared, base.device)
        loading.draw(rows, figure)
    loading.show(rows, f"{config.name}, {environment(base.device)['device']}")


def bench_waiting(config: BenchConfig) -> None:
    """Measure what waiting threads cost, print a table, append JSON lines to `output`."""
    measured, device = build(config.waiting), torch.device("cpu")
    rows = kept(config, measured.measure(config), measured.rows(), {}, device)
    waiting.show(rows, f"{config.name}, {environment(device)['device']}")


def kept(
    config: BenchConfig, measured: Iterator[dict[str, Any]], count: int, shared: dict[str, Any], device: torch.device
) -> list[dict[str, Any]]:
    """The `count` rows of a measurement, each appended to `output` as soon as it is there."""
    rows, path = [], Path(config.output)
    with progress(Plain(), "parts") as bar:
        for each in bar.track(measured, count, description=config.part):
            rows.append({**each, **shared})
            append_line(path, {**rows[-1], **environment(device), "time": time.strftime("%Y-%m-%dT%H:%M:%S")})
    Plain().print(f"appended to {path}")
    return rows
