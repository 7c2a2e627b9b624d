"""Milliseconds and FLOPs of full steps, cheap steps, the loop and decoding, beside their floor."""

import dataclasses
import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.reuse import Reuse
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Uniform
from migm.bases.base import Base, Inputs
from migm.bases.inputs import InputSource
from migm.evaluation.cost import Point, counted, flops, interleaved, matmul_rate
from migm.runtime.console import Plain
from migm.runtime.progress import progress
from migm.sampling.loop import Sampling, generate_images

Job = Callable[[], object]


def step_jobs(base: Base, sampling: Sampling, shortcut: torch.nn.Module, inputs: Inputs) -> dict[str, Job]:
    """`full` and `cheap`: the features of one step in the middle of a run; `decode`: tokens to images."""
    device, spec, batch_size = base.device, base.spec, len(inputs)
    branches = base.encode(inputs, guided=sampling.guidance is not None)
    tokens = torch.randint(0, spec.vocab_size, (batch_size, spec.num_tokens), device=device)
    ratio = torch.full((batch_size,), 0.5, device=device)
    new = torch.arange(spec.num_tokens // sampling.num_steps, device=device).expand(batch_size, -1)
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
def measure(
    base: Base,
    sampling: Sampling,
    shortcut: torch.nn.Module,
    runs: Sequence[Point],
    source: InputSource,
    batch_size: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """One row for each part: milliseconds and FLOPs per image, and the floor that the FLOPs alone would take.

    `overhead` (head, guidance, draw, selection, bookkeeping) is what one step of the loop costs
    beyond the features: a run that computes them once and reuses them, less that one full step,
    over N. The floor is at the rate of one large matrix product, measured in the same run.
    """
    images = torch.arange(batch_size)
    inputs, one = source(images), source(images[:1])
    reused = Point(sampling, Accelerator(Uniform(1), Reuse(), "reuse"))

    def run(point: Point) -> Job:
        sampled: dict[str, Any] = {"sampling": point.sampling, "accelerator": point.accelerator}
        return lambda: generate_images(base, inputs, images, 0, **sampled)

    steps = step_jobs(base, sampling, shortcut, inputs)
    jobs = {**steps, "overhead": run(reused), **{point.label: run(point) for point in runs}}
    with progress(Plain(), "runs") as bar:
        seconds = interleaved(list(jobs.values()), repeats, base.device, bar)
    ms = {part: 1e3 * s / batch_size for part, s in zip(jobs, seconds, strict=True)}
    work: dict[str, float] = {part: counted(job) for part, job in step_jobs(base, sampling, shortcut, one).items()}
    work |= {"overhead": flops(base, reused, source), **{p.label: flops(base, p, source) for p in runs}}
    for values in (ms, work):
        values["overhead"] = (values["overhead"] - values["full"]) / sampling.num_steps
    rate = matmul_rate(base.device, base.dtype)
    return [row(part, ms[part], work[part], ms["full"], rate) for part in jobs]


def row(part: str, ms: float, work: float, full: float, rate: float) -> dict[str, Any]:
    """What is printed and kept of a part."""
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
    """The rows of the largest batch that fits the device's memory, halving from `batch_size`."""
    while True:
        try:
            return batch_size, measured(batch_size)
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
        # Out here the error is gone, and with it the frames that held the tensors.
        gc.collect()
        torch.cuda.empty_cache()
        Plain().print(f"batch {batch_size} does not fit the device's memory: trying {batch_size // 2}")
        batch_size //= 2


def show(rows: Sequence[dict[str, Any]], title: str) -> None:
    """Print the rows as a table."""
    table = Table("part", "ms an image", "full steps", "GFLOP", "floor ms", "of floor", title=title)
    for each in rows:
        numbers = (f"{each['ms_per_image']:.3f}", f"{each['of_full_step']:.3f}", f"{each['gflop']:.3f}")
        table.add_row(each["part"], *numbers, f"{each['floor_ms']:.3f}", f"{each['of_floor']:.0%}")
    Plain().print(table)


def untrained(point: Point, shortcut: torch.nn.Module) -> Point:
    """The point with the configured shortcut's shape: what it costs does not depend on its weights."""
    accelerator = point.accelerator
    if not isinstance(accelerator.predictor, Shortcut):
        return point
    return dataclasses.replace(
        point, accelerator=Accelerator(accelerator.policy, Shortcut(module=shortcut), accelerator.name)
    )
