"""A short measurement before the search: what images and cheap steps cost here, from which a plan is made."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch

from migm.evaluation.cost import LatencyProtocol, costs, latency, seconds_of
from migm.evaluation.evalset import EvalSet
from migm.metrics.metric import Batch, QualityMetric
from migm.runtime.console import Plain
from migm.runtime.errors import UserError
from migm.runtime.progress import progress
from migm.tuning.rungs import Rates
from migm.tuning.space import Builder, Candidate, Method

SUGGESTED = 0.2  # seconds of a suggestion and of writing the result, on a slow core
FULL = 0.3  # of the steps that are full while a cheap step is timed


def trial_points(builder: Builder, methods: Sequence[Method]) -> dict[str, tuple[Candidate, int]]:
    """Return for each method a candidate with many cheap steps, and its full steps, near the sampling's own N."""
    found = {}
    for method in methods:
        if method.is_vanilla:
            continue
        n = min(method.steps, key=lambda steps: abs(steps - builder.num_steps))
        values = {key: each[0] for key, each in method.choices.items()}
        free = replace(method, cheap=0.0)
        placed = free.placed(n, max(1, FULL * n), values, 1, 1.0) or free.placed(n, n, values, 1, 1.0)
        if placed is not None:
            changes = {f"accelerator.{key}": value for key, value in {**values, **placed.changes}.items()}
            found[method.name] = Candidate(method.name, n, placed.num_full_steps, changes), placed.full_steps
    return found


def runnable(
    builder: Builder, methods: Sequence[Method], evalset: EvalSet
) -> tuple[list[Method], list[str], dict[str, tuple[Candidate, int]]]:
    """Return the methods that make an image, lines about the others, and the candidates that were tried."""
    points, kept, lines = trial_points(builder, methods), [], []
    first = torch.arange(1)
    for method in methods:
        if method.name not in points:
            if method.is_vanilla:
                kept.append(method)
            else:
                lines.append(f"{method.name} is left out: it leaves no cheap step at N={list(method.steps)}")
            continue
        try:
            sampler = builder.sampler(points[method.name][0])
            sampler.tokens(evalset.inputs(first), sampler.noise(0, first))
            kept.append(method)
        except UserError as error:
            lines.append(f"{method.name} is left out: {error}")
    return kept, lines, points


def measured(
    builder: Builder,
    methods: Sequence[Method],
    points: dict[str, tuple[Candidate, int]],
    evalset: EvalSet,
    metric: QualityMetric,
    protocol: LatencyProtocol,
    counted: bool,
    console: Plain,
) -> tuple[Rates, dict[str, float]]:
    """Return seconds of images, and each method's cheap step in full steps.

    All are timed in turns; with `counted` the cheap steps are counted, by FLOPs.
    """
    chosen = [method for method in methods if not method.is_vanilla]
    samplers = [builder.sampler(points[method.name][0]) for method in chosen]
    reference = builder.sampler(builder.vanilla())
    with progress(console, "runs") as bar:
        if counted:
            (seconds,) = latency([reference], evalset.inputs, protocol, 1, bar)
            full = [cost.ffe for cost in costs(samplers, evalset.inputs, bar)]
        else:
            seconds, *others = latency([reference, *samplers], evalset.inputs, protocol, 1, bar)
            full = [each / seconds * builder.num_steps for each in others]
    cheap = {}
    for method, sampler, steps in zip(chosen, samplers, full, strict=True):
        b = points[method.name][1]
        cheap[method.name] = max(0.0, steps - b) / (sampler.num_steps - b)
    return Rates(seconds, *_beside(builder, evalset, metric)), cheap


def _beside(builder: Builder, evalset: EvalSet, metric: QualityMetric) -> tuple[float, float]:
    """Return the seconds of decoding and judging an image, and those that a candidate takes without its images."""
    numbers, inputs = next(evalset.batches())
    numbers = numbers[: max(2, min(len(numbers), 20))]
    inputs = inputs[: len(numbers)]
    sampler = builder.sampler(Candidate("vanilla", 1))
    tokens = sampler.tokens(inputs, sampler.noise(0, numbers))
    device = sampler.base.device
    metric.reset()
    extra = seconds_of(lambda: metric.update(Batch(sampler.base.decode(tokens), inputs)), device) / len(numbers)

    def around() -> None:
        builder.sampler(builder.vanilla())
        with suppress(UserError):  # some need more images than these
            metric.compute()

    seconds = seconds_of(around, device)
    metric.reset()
    return extra, SUGGESTED + seconds
