"""The memory that steps and runs take beyond weights, against weights and the features of all branches."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn

from migm.accelerators.predictors.shortcut import Shortcut
from migm.bases.base import Base
from migm.benchmarks.ledger import Row
from migm.benchmarks.steps import step_jobs
from migm.benchmarks.variants import Variant
from migm.evaluation.cost import uncaptured
from migm.evaluation.memory import peak_bytes
from migm.sampling.sampler import Sampler


def weight_bytes(modules: Iterable[nn.Module]) -> int:
    """Return bytes of all parameters and buffers; shared storage counts once."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def networks(base: Base, sampler: Sampler | None = None) -> list[nn.Module]:
    """Return the networks that a sampler holds: those of the base, image tokenizer included, and a shortcut."""
    found = [value for value in vars(base).values() if isinstance(value, nn.Module)]
    predictor = sampler.accelerator.predictor if sampler else None
    if isinstance(predictor, Shortcut) and predictor.module is not None:
        found.append(predictor.module)
    return found


def memory_jobs(variant: Variant, b: int) -> dict[str, Callable[[], Row]]:
    """Return for the full step and the runs of `points` what measures their row.

    A captured run is measured as it is before it is captured: afterwards it holds as much as long as it is kept. What
    was timed before is warm.
    """
    numbers = torch.arange(b)
    inputs, device = variant.source(numbers), variant.base.device
    full = step_jobs(variant.vanilla, variant.predictor, inputs)["full"]

    def row(job: Callable[[], object], sampler: Sampler | None = None, warm: bool = True) -> Row:
        features = sum(part.nbytes for part in full())
        weights, peak = weight_bytes(networks(variant.base, sampler)), peak_bytes(job, device, warm)
        held = {"peak_bytes": peak, "weights_bytes": weights, "features_bytes": features}
        return {**held, "of_weights_and_features": (weights + peak) / (weights + features)}

    def run(sampler: Sampler) -> Row:
        plain = uncaptured(sampler)
        return row(lambda: plain.tokens(inputs, plain.noise(0, numbers)), sampler)

    return {
        "full": partial(row, full, warm=False),
        **{sampler.label: partial(run, sampler) for sampler in variant.samplers},
    }
