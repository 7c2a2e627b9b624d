"""Time training steps as `migm.train` makes them: data to the device, forward, backward, guard, optimizer, average.

Steps follow each other without a wait in between, as in a training, so that what the host does beside the device costs
no time.
"""

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

from migm.bases.base import Base, block_parameters
from migm.benchmarks.loading import random_trajectories
from migm.benchmarks.variants import Variant
from migm.config.building import build
from migm.config.roots import BenchConfig
from migm.evaluation.cost import MOST_REPEATED, counted, num_compiled, synchronise
from migm.runtime.device import pick_precision
from migm.sampling.sampler import Sampler
from migm.training.guards import FiniteGuard
from migm.training.module import ShortcutModule
from migm.training.objective import Objective, made_ready
from migm.training.run import QUIET
from migm.trajectories.dataset import InMemory, PairDataset, Pairs, pinned
from migm.trajectories.replay import with_features

FORMS = ("features", "tokens")
ROUND_SECONDS, MOST_STEPS, WARM = 0.5, 100, 3  # of one round; steps before the first one


@dataclass
class Rounds(L.Callback):
    """Time rounds of steps, the device idle before and after each; rounds in which something compiled do not count."""

    repeats: int
    device: torch.device
    seconds: list[float] = field(default_factory=list)  # of a step, one for each round
    first: float = 0.0  # of the first step
    steps: int = 1  # of a round
    since: float = 0.0
    left: int = 1  # steps until the round ends
    spoilt: int = 0
    graphs: int = -1

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.left == self.steps:
            synchronise(self.device)
            self.graphs, self.since = num_compiled(), time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.left -= 1
        if self.left:
            return
        synchronise(self.device)
        taken = (time.perf_counter() - self.since) / self.steps
        if trainer.global_step == 1:
            self.first = taken
        elif trainer.global_step == WARM:
            self.steps = max(1, min(MOST_STEPS, int(ROUND_SECONDS / taken)))
        elif trainer.global_step > WARM and num_compiled() == self.graphs:
            self.seconds.append(taken)
        elif trainer.global_step > WARM:
            self.spoilt += 1
            if self.spoilt == MOST_REPEATED:
                raise RuntimeError(f"each of {MOST_REPEATED} rounds compiled something anew")
        self.left = self.steps
        trainer.should_stop = len(self.seconds) >= self.repeats


def with_settings(variant: Variant, config: BenchConfig) -> Variant:
    """Return the variant with the settings of a training, which tell its rows apart."""
    keys = ("objective", "optimizer", "callbacks", "trainer")
    settings = json.dumps([variant.settings, {key: getattr(config, key) for key in keys}], sort_keys=True, default=str)
    return replace(variant, settings=settings)


def pairs(sampler: Sampler, data: Any, batch_size: int, together: bool = False) -> Pairs:
    """Return random pairs without features, of as many images as there are pairs, or with both halves `together`."""
    trajectories = InMemory(next(random_trajectories(sampler, data, batch_size, None)))
    made = PairDataset(trajectories, together=together, gaps=data.gaps)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(made), generator=generator)[: batch_size // made.rows]
    return made.__getitems__(made.drawn(chosen, generator).tolist())


def stored(batch: Pairs, base: Base) -> Pairs:
    """Return the pairs with random features of the base's shape, in bfloat16, as a store keeps them."""
    rows = with_features(move_data_to_device(batch, base.device), base).features.shape[1]
    shape, generator = (len(batch.steps), rows, base.spec.channels), torch.Generator().manual_seed(0)
    names = ["features", "target"] + ["earlier"] * (batch.earlier is not None)
    random = {name: torch.randn(shape, generator=generator).bfloat16() for name in names}
    # A store's features are as long as its longest prompt; here that is the batch's.
    conditions = batch.conditions[:, : max(batch.lengths)]
    return batch._replace(conditions=conditions, **random)


def step_flops(shortcut: nn.Module, base: Base, objective: Objective, batch: Pairs) -> tuple[int, int]:
    """Return FLOPs of the base's features and of forward and backward of the shortcut, counted without compiling."""
    here = move_data_to_device(batch, base.device)
    features = counted(lambda: with_features(here, base))

    def both_ways() -> None:
        objective(shortcut, base, whole)[0].backward()

    whole = with_features(here, base)
    return features, counted(both_ways)


def timed_steps(config: BenchConfig, base: Base, batch: Pairs) -> tuple[Rounds, tuple[int, int], torch.dtype]:
    """Train on one batch again and again; return the times, the FLOPs of a step, and the precision of the shortcut."""
    torch.manual_seed(config.seed)
    guidance = build(config.sampling).guidance
    shortcut, objective, device = build(config.shortcut), made_ready(build(config.objective), guidance), base.device
    work = step_flops(shortcut.to(device), base, objective, batch)
    shortcut.zero_grad()
    fast = build(config.runtime).fast(device, block_parameters(base.spec))
    made = (build(config.optimizer), build(config.lr_schedule))
    module = ShortcutModule(shortcut, base, objective, *made, {"seed": config.seed}, fast, guidance)
    kept = [each for each in build(config.callbacks).values() if isinstance(each, (EMAWeightAveraging, FiniteGuard))]
    precision = pick_precision(config.trainer["precision"], device)
    rounds = Rounds(config.repeats, device)
    options: dict[str, Any] = {"accelerator": device.type, "devices": 1, "precision": precision, "max_steps": -1}
    options["log_every_n_steps"] = config.trainer["log_every_n_steps"]
    trainer = L.Trainer(callbacks=[*kept, rounds], **options, **QUIET)
    trainer.fit(module, Repeated(pinned(batch)))
    return rounds, work, torch.bfloat16 if precision.startswith("bf16") else torch.float32


@dataclass
class Repeated:
    """A loader of the same batch without an end."""

    batch: Pairs

    def __iter__(self) -> Iterator[Pairs]:
        while True:
            yield self.batch


def row(rounds: Rounds, work: tuple[int, int], rates: tuple[float, float], batch_size: int) -> dict[str, Any]:
    """Return times of a pair and the floor that FLOPs alone take, each at the rate of its precision."""
    ms = 1e3 * statistics.median(rounds.seconds) / batch_size
    floor = 1e3 * sum(flops / rate for flops, rate in zip(work, rates, strict=True)) / batch_size
    return {
        "ms_per_sample": ms,
        "samples_per_s": 1e3 / ms,
        "gflop": sum(work) / 1e9 / batch_size,
        "base_gflop": work[0] / 1e9 / batch_size,
        "floor_ms": floor,
        "of_floor": floor / ms,
        "matmul_tflop_per_s": rates[1] / 1e12,
        "first_s": rounds.first,
        "repeats": len(rounds.seconds),
        "steps": rounds.steps,
    }
