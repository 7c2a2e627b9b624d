"""Time and FLOPs of full steps, cheap steps, the loop and decoding, and the floor that FLOPs set."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.reuse import Reuse
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Uniform
from migm.bases.base import Inputs
from migm.bases.inputs import InputSource
from migm.evaluation.cost import counted, flops, interleaved, matmul_rate
from migm.runtime.console import Plain
from migm.runtime.progress import progress
from migm.sampling.sampler import Sampler

Job = Callable[[], object]


def step_jobs(vanilla: Sampler, shortcut: torch.nn.Module, inputs: Inputs) -> dict[str, Job]:
    """Return calls to time: `full` and `cheap` compute features of a step, `decode` maps tokens to images."""
    base, batch_size = vanilla.base, len(inputs)
    device, spec = base.device, base.spec
    branches = base.encode(inputs, guided=vanilla.sampling.guidance is not None)
    tokens = torch.randint(0, spec.vocab_size, (batch_size, spec.num_tokens), device=device)
    ratio = torch.full((batch_size,), 0.5, device=device)
    new = torch.arange(spec.num_tokens // vanilla.num_steps, device=device).expand(batch_size, -1)
    predictor = Shortcut(module=shortcut)
    advances = [(predictor.start(base, branch), base.features(tokens, branch, ratio)) for branch in branches]

    def cheap() -> list[Tensor]:
        for advance, features in advances:
            advance.update(0, features)
        return [advance.predict(1, tokens, new, ratio) for advance, _ in advances]

    return {
        "full": lambda: [base.features(tokens, branch, ratio) for branch in branches],
        "cheap": cheap,
        "decode": lambda: base.decode(tokens),
    }


@torch.inference_mode()
def measure_compute(
    vanilla: Sampler,
    shortcut: torch.nn.Module,
    samplers: Sequence[Sampler],
    source: InputSource,
    batch_size: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """Return one row per part: milliseconds and FLOPs per image, and the floor that FLOPs alone would take.

    `overhead` (head, guidance, draw, selection, bookkeeping) is the cost of one step of the loop beyond the
    features: a run that computes features once and reuses them, minus one full step, divided by N. The floor
    assumes the rate of one large matrix product, measured in the same run.
    """
    images = torch.arange(batch_size)
    inputs, one_input = source(images), source(images[:1])
    base = vanilla.base
    reused = replace(vanilla, accelerator=Accelerator(Uniform(1), Reuse(), "reuse"))

    def run(sampler: Sampler) -> Job:
        return lambda: sampler.tokens(inputs, sampler.noise(0, images))

    steps = step_jobs(vanilla, shortcut, inputs)
    jobs = {**steps, "overhead": run(reused), **{sampler.label: run(sampler) for sampler in samplers}}
    with progress(Plain(), "runs") as bar:
        seconds = interleaved(list(jobs.values()), repeats, base.device, bar)
    ms = {part: 1e3 * s / batch_size for part, s in zip(jobs, seconds, strict=True)}
    work: dict[str, float] = {part: counted(job) for part, job in step_jobs(vanilla, shortcut, one_input).items()}
    work |= {"overhead": flops(reused, source), **{sampler.label: flops(sampler, source) for sampler in samplers}}
    for values in (ms, work):
        values["overhead"] = (values["overhead"] - values["full"]) / vanilla.num_steps
    rate = matmul_rate(base.device, base.dtype)
    return [row(part, ms[part], work[part], ms["full"], rate) for part in jobs]


def row(part: str, ms: float, work: float, full: float, rate: float) -> dict[str, Any]:
    """Return the row of a part, to print and to keep."""
    floor = 1e3 * work / rate
    return {
        "part": part,
        "ms_per_image": ms,
        "of_full_step": ms / full,
        "gflop": work / 1e9,
        "floor_ms": floor,
        "of_floor": floor / ms,
        "matmul_tflop_per_s": rate / 1e12,
    }


def fitting(measured: Callable[[int], list[dict[str, Any]]], batch_size: int) -> tuple[int, list[dict[str, Any]]]:
    """Return the largest batch size that fits the device's memory, halving from `batch_size`, and its rows."""
    while True:
        try:
            return batch_size, measured(batch_size)
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
        # Outside of `except` the error is gone, and with it the frames that held the tensors.
        gc.collect()
        torch.cuda.empty_cache()
        Plain().print(f"batch {batch_size} does not fit the device's memory: trying {batch_size // 2}")
        batch_size //= 2


def show(rows: Sequence[dict[str, Any]], title: str) -> None:
    """Print the rows as a table."""
    table = Table("part", "ms an image", "full steps", "GFLOP", "floor ms", "of floor", title=title)
    for row in rows:
        numbers = (f"{row['ms_per_image']:.3f}", f"{row['of_full_step']:.3f}", f"{row['gflop']:.3f}")
        table.add_row(row["part"], *numbers, f"{row['floor_ms']:.3f}", f"{row['of_floor']:.0%}")
    Plain().print(table)


def untrained(sampler: Sampler, shortcut: torch.nn.Module) -> Sampler:
    """Give the sampler the configured shortcut, untrained: the cost does not depend on the weights."""
    if not isinstance(sampler.accelerator.predictor, Shortcut):
        return sampler
    return replace(sampler, accelerator=replace(sampler.accelerator, predictor=Shortcut(module=shortcut)))
