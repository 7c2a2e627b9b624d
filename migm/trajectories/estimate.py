"""What every way to keep trajectories takes on this machine, before anything is made, and which one suits it."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from rich.table import Table

from migm.bases.base import Base
from migm.runtime.resources import available_memory, free_disk, readable
from migm.sampling.loop import Sampling
from migm.trajectories.datamodule import TrajectoryData
from migm.trajectories.store import estimate_bytes, estimate_token_bytes

SHARE = 0.9  # of free disk or memory that a recommendation may fill


class Work(NamedTuple):
    """One training: what it is made of, and what a full step costs."""

    images: int
    num_steps: int
    copies: int  # guidance halves
    rows: int  # of a sequence, prompt included
    channels: int
    num_tokens: int
    condition: int  # ids
    shard_images: int
    reuse: int
    pairs: int  # that training draws: its steps by its batch size
    seconds: float  # of a full step of one image, all halves

    def bytes(self, storage: str, dtype: torch.dtype) -> int:
        """What all images take on disk, by storage "online" a shard in memory."""
        if storage == "tokens":
            return estimate_token_bytes(self.images, self.copies, self.num_tokens, self.condition)
        images = self.shard_images if storage == "online" else self.images
        return estimate_bytes(images, self.copies, self.num_steps, self.rows, self.channels, dtype)


class Option(NamedTuple):
    """One way to keep trajectories."""

    storage: str
    dtype: str
    disk: int  # bytes
    memory: int  # bytes that are held, beyond the base
    before: float  # seconds of the base before training
    during: float  # seconds of the base while training

    @property
    def name(self) -> str:
        return f"{self.storage} {self.dtype}".rstrip()


def measure(base: Base, sampling: Sampling, data: TrajectoryData, pairs: int) -> Work:
    """The work of a training of so many pairs; a full step is the second of two of a batch."""
    inputs = data.inputs(torch.arange(min(data.collect_batch_size, data.num_images)))
    branches, batch_size = base.encode(inputs, guided=sampling.guidance is not None), len(inputs)
    tokens = torch.full((batch_size, base.spec.num_tokens), base.spec.vocab_size, device=base.device)
    ratio, rows, seconds = torch.ones(batch_size, device=base.device), 0, 0.0
    for _ in range(2):
        start = time.perf_counter()
        with torch.inference_mode():
            rows = max(base.features(tokens, branch, ratio).cpu().shape[1] for branch in branches)
        seconds = (time.perf_counter() - start) / batch_size
    return Work(
        images=data.num_images,
        num_steps=sampling.num_steps,
        copies=sum(branch.copies for branch in branches),
        rows=rows,
        channels=base.spec.channels,
        num_tokens=base.spec.num_tokens,
        condition=max(branch.condition.shape[1] for branch in branches),
        shard_images=data.shard_images,
        reuse=data.reuse,
        pairs=pairs,
        seconds=seconds,
    )


def options(work: Work) -> Iterator[Option]:
    """Features in both formats, tokens, and trajectories made while training."""
    half, image = work.seconds / work.copies, work.num_steps * work.seconds
    for dtype in (torch.bfloat16, torch.int8):
        name = str(dtype).removeprefix("torch.")
        yield Option("features", name, work.bytes("features", dtype), 0, work.images * image, 0.0)
    disk = work.bytes("tokens", torch.bfloat16)
    yield Option("tokens", "", disk, 0, work.images * image, 2 * half * work.pairs)
    pairs_an_image = work.copies * (work.num_steps - 1) * work.reuse
    held = work.bytes("online", torch.bfloat16)
    yield Option("online", "", 0, held, 0.0, work.pairs / pairs_an_image * image)


def recommended(found: list[Option], disk: int, memory: int) -> Option | None:
    """The quickest of those that fit into so many free bytes; of equally quick ones the first."""
    fitting = [o for o in found if o.disk <= SHARE * disk and o.memory <= SHARE * memory]
    return min(fitting, key=lambda option: option.before + option.during, default=None)


def comparison(work: Work, folder: Path) -> Table:
    """All options side by side, the recommended one marked."""
    disk, memory = free_disk(folder), available_memory()
    found = list(options(work))
    best = recommended(found, disk, max(o.memory for o in found) * 2 if memory is None else memory)
    known = "" if memory is None else f" and {readable(memory)} of memory"
    title = f"{readable(disk)} of disk{known} are free; the base runs before and during training:"
    table = Table(title=title, title_justify="left", box=None)
    for column in ("data.storage", "disk", "memory", "before", "during", ""):
        table.add_column(column, no_wrap=True)
    for option in found:
        sizes = [readable(size) if size else "" for size in (option.disk, option.memory)]
        times = [duration(seconds) if seconds else "" for seconds in (option.before, option.during)]
        table.add_row(option.name, *sizes, *times, "recommended" if option == best else "")
    return table


def duration(seconds: float) -> str:
    """Hours, minutes, seconds."""
    return f"{round(seconds) // 3600}:{round(seconds) // 60 % 60:02}:{round(seconds) % 60:02}"
