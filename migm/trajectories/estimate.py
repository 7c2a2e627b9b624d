"""Estimate the costs of every storage on this machine before anything is collected, and recommend one."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from rich.table import Table

from migm.bases.base import Moment
from migm.runtime.errors import UserError
from migm.runtime.resources import available_memory, free_disk, readable
from migm.sampling.sampler import Sampler

if TYPE_CHECKING:
    from migm.trajectories.datamodule import TrajectoryData
    from migm.trajectories.storage import Storage

SHARE = 0.9  # of the free disk or memory that a recommended storage may fill


class TrainingWork(NamedTuple):
    """The sizes of a training, and the time of a full step."""

    images: int
    num_steps: int
    copies: int  # guidance halves
    rows: int  # of the longest sequence, prompt included
    channels: int
    num_tokens: int
    condition: int  # most ids of one half
    shard_images: int
    pairs: int  # that training reads: its steps times the pairs of a step
    seconds: float  # of a full step of one image, all halves
    steps_a_pair: int = 2  # whose features are read

    @property
    def seconds_an_image(self) -> float:
        """The seconds that the base takes for the trajectory of one image."""
        return self.num_steps * self.seconds

    def feature_bytes(self, images: int, dtype: torch.dtype) -> int:
        """Return the bytes of the features of `images` trajectories; a row of int8 includes its scale."""
        scale = torch.float32.itemsize if dtype == torch.int8 else 0
        return images * self.copies * self.num_steps * self.rows * (self.channels * dtype.itemsize + scale)

    def token_bytes(self) -> int:
        """Return the bytes of the tokens, orders, numbers and conditions of all images."""
        return self.images * (self.num_tokens * (4 + 2) + self.copies * self.condition * 4 + 8)


class Costs(NamedTuple):
    """The costs of a training with one storage."""

    disk: int = 0  # bytes
    memory: int = 0  # bytes, without the base
    before: float = 0.0  # seconds of the base before training
    during: float = 0.0  # seconds of the base while training


def measure_work(sampler: Sampler, data: "TrajectoryData", pairs: int) -> TrainingWork:
    """Return the work of a training with `pairs` pairs; the time is that of the second of two full steps of a batch.

    UserError if images are drawn in one step: then there are no pairs.
    """
    if sampler.num_steps < 2:
        raise UserError("sampling.num_steps=1: a shortcut learns from one step to the next; set at least 2")
    base, guided = sampler.base, sampler.sampling.guidance is not None
    inputs = data.inputs(torch.arange(min(data.collect_batch_size, data.num_images)))
    branches, batch_size = base.encode(inputs, guided), len(inputs)
    tokens = torch.full((batch_size, base.spec.num_tokens), base.spec.vocab_size, device=base.device)
    moment, rows, seconds = Moment.first(batch_size, sampler.num_steps, base.device), 0, 0.0
    for _ in range(2):
        start = time.perf_counter()
        with torch.inference_mode():
            rows = max(base.features(tokens, branch, moment).cpu().shape[1] for branch in branches)
        seconds = (time.perf_counter() - start) / batch_size
    return TrainingWork(
        images=data.num_images,
        num_steps=sampler.num_steps,
        copies=sum(branch.copies for branch in branches),
        rows=rows,
        channels=base.spec.channels,
        num_tokens=base.spec.num_tokens,
        condition=max(branch.condition.shape[1] for branch in branches),
        shard_images=data.shard_images,
        pairs=pairs,
        seconds=seconds,
        steps_a_pair=3 if data.gaps and data.gaps.earlier else 2,
    )


def recommended(costs: Mapping[str, Costs], disk: int, memory: int) -> str | None:
    """Return the name of the quickest storage that fits into the free bytes, the first of equals; None if none fits."""
    fitting = {name: c for name, c in costs.items() if c.disk <= SHARE * disk and c.memory <= SHARE * memory}
    return min(fitting, key=lambda name: fitting[name].before + fitting[name].during, default=None)


def comparison(work: TrainingWork, folder: Path, storages: Mapping[str, "Storage"]) -> Table:
    """Return a table of the costs of all `storages`, named as in `data/storage=`; it marks the recommended one."""
    disk, memory = free_disk(folder), available_memory()
    costs = {name: storage.costs(work) for name, storage in storages.items()}
    best = recommended(costs, disk, max(c.memory for c in costs.values()) * 2 if memory is None else memory)
    free_memory = "" if memory is None else f" and {readable(memory)} of memory"
    title = f"{readable(disk)} of disk{free_memory} are free; the base runs before and during training:"
    table = Table(title=title, title_justify="left", box=None)
    for column in ("data/storage", "disk", "memory", "before", "during", ""):
        table.add_column(column, no_wrap=True)
    for name, cost in costs.items():
        sizes = [readable(size) if size else "" for size in (cost.disk, cost.memory)]
        times = [duration(seconds) if seconds else "" for seconds in (cost.before, cost.during)]
        table.add_row(name, *sizes, *times, "recommended" if name == best else "")
    return table


def duration(seconds: float) -> str:
    """Return a duration as hours:minutes:seconds."""
    return f"{round(seconds) // 3600}:{round(seconds) // 60 % 60:02}:{round(seconds) % 60:02}"
