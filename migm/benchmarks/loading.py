"""What training pairs cost: out of each form they are kept in, out of the released layout, and beside a training step.

Contents are random, shapes those of the base: the bytes are the same. `cold` means that the page cache holds nothing of
the files (POSIX_FADV_DONTNEED after all mappings are gone), which the bytes that the process reads from the disk show.
"""

import gc
import os
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from rich.table import Table
from torch import nn

from migm.bases.base import Base
from migm.evaluation.cost import synchronise
from migm.runtime.console import Plain
from migm.runtime.errors import UserError
from migm.runtime.figures import plain_ticks, plt
from migm.runtime.kinds import Count
from migm.sampling.loop import Sampling
from migm.training.objective import Objective
from migm.trajectories.datamodule import TrajectoryData
from migm.trajectories.dataset import InMemory, PairDataset, Pairs
from migm.trajectories.loader import StatefulLoader
from migm.trajectories.online import OnlineLoader
from migm.trajectories.record import Trajectories, packed, padded
from migm.trajectories.replay import with_features
from migm.trajectories.store import Store
from migm.trajectories.tars import export_tars, read_images

Row = dict[str, Any]
FORMS = {"bfloat16": torch.bfloat16, "int8": torch.int8, "tokens": None}


@dataclass(frozen=True)
class Loading:
    """How much is written below `folder`, and deleted at the end, and how much of it is read."""

    folder: str
    num_images: Count  # stored
    tar_images: Count  # of them in the released layout
    online_images: Count  # generated, a shard of storage "online"
    batches: Count  # read from storage "features", and trained on
    base_batches: Count  # of storage "tokens", which the base has to compute
    cold_pairs: Count

    def measure(
        self, base: Base, sampling: Sampling, data: TrajectoryData, train: Callable[[Pairs], object]
    ) -> Iterator[Row]:
        """Rows of `rate` (pairs and MB a second), `cold` (ms of one pair) and `step` (the share of waiting)."""
        if self.num_images * (sampling.num_steps - 1) < data.batch_size * (self.batches + 1):
            raise UserError(f"loading.num_images={self.num_images} gives fewer than loading.batches={self.batches} + 1")
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="loading", dir=self.folder) as temporary:
            folder = Path(temporary)
            chosen = (base, sampling, data, self.num_images)
            stores = {name: random_store(folder / name, *chosen, dtype) for name, dtype in FORMS.items()}
            bf16 = 2 * PairDataset(stores["bfloat16"]).__getitems__([0]).features.nbytes  # of a pair

            def rate(form: str, cache: str, counts: Iterable[int]) -> Row:
                start = time.perf_counter()
                pairs = sum(counts)
                second = pairs / (time.perf_counter() - start)
                return {
                    "part": "rate",
                    "form": form,
                    "cache": cache,
                    "pairs_per_s": second,
                    "mb_per_s": second * bf16 / 1e6,
                }

            for form in ("bfloat16", "int8"):
                yield from self._pairs(stores[form], data, form, rate)
                yield {"part": "cold", "form": form, **self._cold(stores[form])}
                yield {"part": "step", "form": form, **self._steps(stores[form], data, train)}
            if getattr(base, "tars", None):
                yield from self._tars(stores["bfloat16"], folder, base, rate)
            read = islice(loader(stores["tokens"], data), self.base_batches)
            replayed = (move_data_to_device(batch, base.device) for batch in read)
            yield rate("tokens", "warm", (len(with_features(batch, base).steps) for batch in replayed))
            yield rate("online", "none", (len(batch.steps) for batch in self._online(data)))

    def rows(self, base: Base) -> int:
        """How many rows `measure` gives."""
        return 13 if getattr(base, "tars", None) else 10

    def _pairs(self, store: Store, data: TrajectoryData, form: str, rate: Callable[..., Row]) -> Iterator[Row]:
        for cache in ("cold", "warm"):
            if cache == "cold":
                forget(store.folder)
            batches = islice(loader(store, data), self.batches)
            yield rate(form, cache, (len(batch.steps) for batch in batches))

    def _cold(self, store: Store) -> Row:
        """Milliseconds from a store that nothing was read of to one random pair, and MB that came from the disk."""
        milliseconds, megabytes = [], []
        choice = torch.randperm(len(PairDataset(store)), generator=torch.Generator().manual_seed(0))
        for pair in choice[: self.cold_pairs].tolist():
            pairs = PairDataset(store)
            forget(store.folder)
            before, start = read_bytes(), time.perf_counter()
            pairs.__getitems__([pair])
            milliseconds.append(1e3 * (time.perf_counter() - start))
            megabytes.append((read_bytes() - before) / 1e6)
        return {"ms": statistics.median(milliseconds), "max_ms": max(milliseconds), "mb": statistics.median(megabytes)}

    def _steps(self, store: Store, data: TrajectoryData, train: Callable[[Pairs], object]) -> Row:
        """Median times of a training step and of waiting for its batch, and the share of all waiting; cold at first."""
        forget(store.folder)
        batches = iter(loader(store, data))
        train(next(batches))
        waits, steps = [], []
        for _ in range(self.batches):
            start = time.perf_counter()
            batch = next(batches)
            waits.append(time.perf_counter() - start)
            train(batch)
            steps.append(time.perf_counter() - start)
        middle = {"step_ms": 1e3 * statistics.median(steps), "wait_ms": 1e3 * statistics.median(waits)}
        return {**middle, "wait_share": sum(waits) / sum(steps)}

    def _tars(self, store: Store, folder: Path, base: Base, rate: Callable[..., Row]) -> Iterator[Row]:
        """Whole trajectories out of tars, one after the other, every pair of each used, as the released code does."""
        images = next(
            i for i in range(len(store.shards) + 1) if sum(s["count"] for s in store.shards[:i]) >= self.tar_images
        )
        few = Store(store.folder)
        few.shards = few.shards[:images]
        for _ in export_tars(few, folder / "tars", base):
            pass
        pairs = 2 * (store.header["num_steps"] - 1)
        for cache in ("cold", "warm"):
            if cache == "cold":
                forget(folder / "tars")
            yield rate("tars", cache, (pairs for _ in read_images(folder / "tars")))
        milliseconds = []
        for image in range(min(self.cold_pairs, len(few))):
            forget(folder / "tars")
            start = time.perf_counter()
            next(read_images(folder / "tars", image))
            milliseconds.append(1e3 * (time.perf_counter() - start))
        yield {"part": "cold", "form": "tars", "ms": statistics.median(milliseconds), "max_ms": max(milliseconds)}

    def _online(self, data: TrajectoryData) -> OnlineLoader:
        images = torch.arange(self.online_images)

        def make(_: int) -> PairDataset:
            return PairDataset(InMemory(data.record(images=images, dtype=torch.bfloat16)))

        return OnlineLoader(make, len(images) * data.pairs_an_image, 1, 1, min(data.batch_size, data.pairs_an_image), 0)


def training_step(
    base: Base, shortcut: nn.Module, objective: Objective, optimizer: torch.optim.Optimizer
) -> Callable[[Pairs], None]:
    """One step of training on a batch, finished on the device when it returns."""
    shortcut.to(base.device).requires_grad_(True)

    def train(batch: Pairs) -> None:
        objective(shortcut, base, move_data_to_device(batch, base.device))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronise(base.device)

    return train


def random_store(
    folder: Path, base: Base, sampling: Sampling, data: TrajectoryData, images: int, dtype: torch.dtype | None
) -> Store:
    """A store of `random_trajectories` of so many images."""
    store = Store(folder, {"base": base.fingerprint(), **shape(sampling)})
    for made in random_trajectories(base, sampling, data, images, dtype):
        store.append(made)
    return store


def shape(sampling: Sampling) -> dict[str, int]:
    """Guidance halves and steps of a trajectory, as a store's header says them."""
    return {"copies": 1 + (sampling.guidance is not None), "num_steps": sampling.num_steps}


def random_trajectories(
    base: Base, sampling: Sampling, data: TrajectoryData, images: int, dtype: torch.dtype | None
) -> Iterator[Trajectories]:
    """Shards of the base's shape without its meaning: normal features, tokens revealed in a random order."""
    spec, n, guided = base.spec, sampling.num_steps, sampling.guidance is not None

    def length(image: int) -> int:
        return max(branch.condition.shape[1] for branch in base.encode(data.inputs(torch.tensor([image])), guided))

    one = base.encode(data.inputs(torch.tensor([max(range(images), key=length)])), guided)  # the longest
    empty, ratio = (
        torch.full((1, spec.num_tokens), spec.vocab_size, device=base.device),
        torch.ones(1, device=base.device),
    )
    with torch.inference_mode():
        rows = max(base.features(empty, branch, ratio).shape[1] for branch in one)
    generator = torch.Generator().manual_seed(0)
    steps = torch.arange(spec.num_tokens) * n // spec.num_tokens
    for numbers in torch.arange(images).split(data.shard_images):
        b = len(numbers)
        size = (b, 1 + guided, n, rows, spec.channels) if dtype else (b, 1 + guided, n, 0, 0)
        branches = base.encode(data.inputs(numbers), guided)
        conditions = torch.cat(padded([x.condition.cpu().unflatten(0, (-1, b)) for x in branches], -1, -1))
        yield Trajectories(
            packed(torch.randn(size, generator=generator), dtype or torch.bfloat16),
            torch.randint(0, spec.vocab_size, (b, spec.num_tokens), generator=generator, dtype=torch.int32),
            torch.stack([steps[torch.randperm(len(steps), generator=generator)] for _ in numbers]).to(torch.int16),
            conditions.transpose(0, 1).to(torch.int32).contiguous(),
            numbers,
        )


def loader(store: Store, data: TrajectoryData) -> StatefulLoader:
    return StatefulLoader(PairDataset(store), data.batch_size, data.seed, num_workers=data.num_workers)


def forget(folder: Path) -> None:
    """Take a folder's files out of the page cache; what is still mapped somewhere would stay."""
    gc.collect()
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_bytes() -> int:
    """Bytes that this process has made the disk read."""
    found = re.search(r"^read_bytes: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def show(rows: Sequence[Row], title: str) -> None:
    """Print the rows as a table."""
    table = Table("part", "form", "cache", "pairs/s", "MB/s", "ms", "ms waiting", "share", title=title)
    for row in rows:
        milliseconds = row.get("ms", row.get("step_ms"))
        numbers = (row.get("pairs_per_s"), row.get("mb_per_s"), milliseconds, row.get("wait_ms"))
        cells = ["" if number is None else f"{number:.1f}" for number in numbers]
        share = f"{row['wait_share']:.1%}" if "wait_share" in row else ""
        table.add_row(row["part"], row["form"], row.get("cache", ""), *cells, share)
    Plain().print(table)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Pairs a second of every form, cold where both were measured, on a logarithmic axis."""
    rates = {row["form"]: row["pairs_per_s"] for row in reversed(rows) if row["part"] == "rate"}
    figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
    bars = axes.barh(list(rates), list(rates.values()), color="tab:blue")
    axes.bar_label(bars, fmt=lambda rate: f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}", padding=3)
    axes.set(xscale="log", xlabel="training pairs per second")
    plain_ticks(axes.xaxis)
    axes.set_xlim(right=3 * max(rates.values()))  # room for the numbers
    figure.savefig(path, dpi=120)
    plt.close(figure)
