"""Calibrate L2P and TeaCache on a base, from a few vanilla trajectories."""

import numpy as np
import torch

from migm.accelerators.calibration import POLYNOMIAL_DEGREE, Calibration
from migm.accelerators.teacache import Indicator, relative_change, signal
from migm.bases.base import StepRecord
from migm.bases.inputs import InputSource
from migm.bases.layers import LayerBase, layered
from migm.runtime.console import Plain
from migm.runtime.progress import progress
from migm.sampling.sampler import Sampler

INDICATORS: tuple[Indicator, ...] = ("input", "first_block")


class Moves:
    """Observe one batch: inner products of the features of all steps, and changes of indicators and features."""

    def __init__(self, base: LayerBase, num_steps: int):
        self.base = base
        self.features: list[list[torch.Tensor]] = []  # 0 at padding
        self.signals: dict[Indicator, list[list[torch.Tensor]]] = {name: [] for name in INDICATORS}
        self.gram = np.zeros((num_steps, num_steps))
        self.changes: dict[str, list[float]] = {name: [] for name in (*INDICATORS, "features")}

    def on_step(self, record: StepRecord) -> None:
        before = record.tokens_before(self.base.spec.vocab_size)
        for name, seen in self.signals.items():
            seen.append([signal(self.base, b, before, record.moment, name) for b in record.branches])
        pairs = zip(record.features, record.branches, strict=True)
        self.features.append([f if b.mask is None else f * b.mask[..., None] for f, b in pairs])
        i = record.index
        for j, other in enumerate(self.features):
            products = [float((a.double() * b.double()).mean()) for a, b in zip(other, self.features[-1], strict=True)]
            self.gram[i, j] = self.gram[j, i] = sum(products)
        if i:
            for name, seen in [*self.signals.items(), ("features", self.features)]:
                self.changes[name] += relative_change(seen[-2], seen[-1], record.branches).tolist()
        for seen in self.signals.values():
            del seen[:-1]


def calibrate(sampler: Sampler, source: InputSource, num_images: int, batch_size: int, seed: int) -> Calibration:
    """Run vanilla sampling on the first images of `source` in the run of `seed`, and fit the calibration."""
    base, n = layered(sampler.base, "migm.calibrate"), sampler.num_steps
    gram, changes = np.zeros((n, n)), {name: [] for name in (*INDICATORS, "features")}
    with progress(Plain(), "images") as bar:
        task = bar.add_task("calibrate", total=num_images)
        for numbers in torch.arange(num_images).split(batch_size):
            moves = Moves(base, n)
            sampler.tokens(source(numbers), sampler.noise(seed, numbers), [moves])
            gram += moves.gram * len(numbers) / num_images
            for name, values in moves.changes.items():
                changes[name] += values
            bar.advance(task, len(numbers))
    polynomials = {
        name: np.polyfit(changes[name], changes["features"], POLYNOMIAL_DEGREE).tolist() for name in INDICATORS
    }
    data = f"{num_images:,} trajectories of vanilla N = {n}, seed {seed}"
    return Calibration(gram, polynomials, base.fingerprint(), sampler.sampling.identity, {"data": data})
