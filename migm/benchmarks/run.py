"""Parts of `migm.bench`: measure, print tables, append JSON lines."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from migm.benchmarks import loading, table, training, waiting
from migm.benchmarks.compute import Bench, fitting
from migm.benchmarks.ledger import Ledger
from migm.benchmarks.timing import Budget
from migm.benchmarks.variants import built
from migm.config.building import build
from migm.config.compare import Plan
from migm.config.roots import BenchConfig
from migm.evaluation.cost import matmul_rate
from migm.runtime.console import Plain
from migm.runtime.errors import UserError
from migm.runtime.jsonl import append_line
from migm.runtime.progress import progress
from migm.runtime.provenance import environment
from migm.runtime.writing import writing
from migm.sampling.sampler import Sampler, say_decisions
from migm.training.run import halves_together


def bench_compute(config: BenchConfig, planned: Sequence[Plan]) -> None:
    """Measure or profile steps and runs of every variant, print tables, draw a figure, append lines to `output`."""
    budget, path = Budget(config.max_seconds), Path(config.output)
    variants = built(planned)
    say_decisions([sampler for variant in variants for sampler in variant.samplers], Plain())
    ledger = Ledger(path, variants[0].base.device, config.resume, config.name)
    bench = Bench(variants, ledger, budget, config.repeats, config.new_lengths)
    for bench.wanted in dict.fromkeys(config.batch_sizes):
        before = len(ledger.rows)
        batch = fitting(bench.profile if config.part == "profile" else bench.measure, bench.wanted)
        lowered = "" if batch == bench.wanted else f" ({bench.wanted} does not fit the memory)"
        rows = [row for row in ledger.rows[before:] if row["batch_size"] == batch]
        table.show(rows, f"batch {batch}{lowered}, {ledger.environment['device']}")
    figure = table.figure_path(path, config.name, ledger.environment["device"])
    drawn = table.draw(ledger.latest(), figure)
    Plain().print(f"appended to {path}" + (f", drawn in {figure}" if drawn else ""))


def bench_training(config: BenchConfig, planned: Sequence[Plan]) -> None:
    """Measure training steps of every variant from both kinds of stores, print a table, append lines to `output`."""
    budget, path = Budget(config.max_seconds), Path(config.output)
    variants = built(planned)
    device = variants[0].base.device
    ledger = Ledger(path, device, config.resume, config.name)
    rates: dict[torch.dtype, float] = {}
    for plan, built_variant in zip(planned, variants, strict=True):
        data, base = build(plan.config.data), built_variant.base
        data.serve(built_variant.network)
        b, variant = data.batch_size, training.with_settings(built_variant, plan.config)
        guided = variant.vanilla.sampling.guidance is not None
        together = halves_together(build(plan.config.objective), plan.config.data, guided)
        batch = training.pairs(variant.vanilla, data, b, together)
        for form in training.FORMS:
            about = ledger.about(variant, "train", form, b, b)
            if ledger.lacks(about) and not budget.over():
                given = batch if form == "tokens" else training.stored(batch, base)
                rounds, work, dtype = training.timed_steps(plan.config, base, given)
                rates |= {kind: matmul_rate(device, kind) for kind in {dtype, base.dtype} - rates.keys()}
                ledger.add(about, training.row(rounds, work, (rates[base.dtype], rates[dtype]), b))
            elif ledger.lacks(about):
                Plain().print(f"left out, since max_seconds is over: {form} {variant.name}", style="yellow")
    table.show(ledger.rows, f"pairs from a store of {' or '.join(training.FORMS)}, {ledger.environment['device']}")
    Plain().print(f"appended to {path}")


def refuse_halves_together(config: BenchConfig) -> None:
    """Raise a UserError if both guidance halves of an image are to be in one batch."""
    if halves_together(build(config.objective), config.data, guided=False):
        raise UserError(
            f"part={config.part} trains on pairs whose guidance halves are apart; choose objective=mse without "
            "data.halves=together, or part=train"
        )


def bench_loading(config: BenchConfig) -> None:
    """Measure the cost of pairs, print a table, draw a figure, append JSON lines to `output`."""
    refuse_halves_together(config)
    sampler = Sampler(build(config.base), build(config.sampling), runtime=build(config.runtime))
    data = build(config.data)
    base = sampler.base
    shortcut, objective = build(config.shortcut), build(config.objective)
    train = loading.training_step(base, shortcut, objective, build(config.optimizer)(shortcut.named_parameters()))
    data.attach(sampler, config.seed)
    data.serve(shortcut)
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
    refuse_halves_together(config)
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
