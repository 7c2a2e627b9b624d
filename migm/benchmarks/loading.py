"""Cost of training pairs: from each form of storage, from the released layout, and beside a training step.

Contents are random but have the base's shapes, so that they have as many bytes. `cold` means that the page
cache holds nothing of the files (POSIX_FADV_DONTNEED after all mappings are gone). The bytes that the process
reads from the disk show that.
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

from migm.bases.base import Base, Moment
from migm.evaluation.cost import synchronise
from migm.runtime.console import Plain
from migm.runtime.errors import UserError
from migm.runtime.figures import plain_ticks, plt, write_figure
from migm.runtime.kinds import Count
from migm.sampling.loop import Sampling
from migm.sampling.sampler import Sampler
from migm.training.objective import Objective
from migm.trajectories.datamodule import TrajectoryData
from migm.trajectories.dataset import InMemory, PairDataset, Pairs
from migm.trajectories.loader import StatefulLoader
from migm.trajectories.online import OnlineLoader
from migm.trajectories.record import Trajectories, packed, padded
from migm.trajectories.replay import with_features
from migm.trajectories.store import Store
from migm.trajectories.tars import MakeLayout, export_tars, read_images

BenchRow = dict[str, Any]
FORMS = {"bfloat16": torch.bfloat16, "int8": torch.int8, "tokens": None}


@dataclass(frozen=True)
class Loading:
    """Sizes of the benchmark: images written below `folder`, deleted at the end, and pairs read back."""

    folder: str
    num_images: Count  # stored
    tar_images: Count  # stored images that are also written in the released layout
    online_images: Count  # generated for a shard of storage "online"
    batches: Count  # read from storage "features", and trained on
    base_batches: Count  # read from storage "tokens", with features computed by the base
    cold_pairs: Count

    def measure_pairs(
        self, sampler: Sampler, data: TrajectoryData, train: Callable[[Pairs], object]
    ) -> Iterator[BenchRow]:
        """Yield rows of `rate` (pairs and MB a second), `cold` (ms of one pair) and `step` (the share of waiting)."""
        if self.num_images * (sampler.num_steps - 1) < data.batch_size * (self.batches + 1):
            raise UserError(f"loading.num_images={self.num_images} gives fewer than loading.batches={self.batches} + 1")
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="loading", dir=self.folder) as temporary:
            folder, base = Path(temporary), sampler.base
            content = (sampler, data, self.num_images)
            stores = {name: random_store(folder / name, *content, dtype) for name, dtype in FORMS.items()}
            bf16 = 2 * PairDataset(stores["bfloat16"]).__getitems__([0]).features.nbytes  # bytes of a pair

            def rate(form: str, cache: str, counts: Iterable[int]) -> BenchRow:
                start = time.perf_counter()
                pairs = sum(counts)
                pairs_per_second = pairs / (time.perf_counter() - start)
                return {
                    "part": "rate",
                    "form": form,
                    "cache": cache,
                    "pairs_per_s": pairs_per_second,
                    "mb_per_s": pairs_per_second * bf16 / 1e6,
                }

            for form in ("bfloat16", "int8"):
                yield from self._pairs(stores[form], data, form, rate)
                yield {"part": "cold", "form": form, **self._cold(stores[form])}
                yield {"part": "step", "form": form, **self._steps(stores[form], data, train)}
            if data.tars:
                yield from self._tars(stores["bfloat16"], folder, base, data.tars, rate)
            read = islice(loader(stores["tokens"], data), self.base_batches)
            replayed = (move_data_to_device(batch, base.device) for batch in read)
            yield rate("tokens", "warm", (len(with_features(batch, base).steps) for batch in replayed))
            yield rate("online", "none", (len(batch.steps) for batch in self._online(data)))

    def num_rows(self, data: TrajectoryData) -> int:
        """Return the number of rows that `measure_pairs` yields."""
        return 13 if data.tars else 10

    def _pairs(
        self, store: Store, data: TrajectoryData, form: str, rate: Callable[..., BenchRow]
    ) -> Iterator[BenchRow]:
        for cache in ("cold", "warm"):
            if cache == "cold":
                forget(store.folder)
            batches = islice(loader(store, data), self.batches)
            yield rate(form, cache, (len(batch.steps) for batch in batches))

    def _cold(self, store: Store) -> BenchRow:
        """Return milliseconds to read one random pair of an unread store, and the MB that came from the disk."""
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

    def _steps(self, store: Store, data: TrajectoryData, train: Callable[[Pairs], object]) -> BenchRow:
        """Return median times of a training step and of waiting for its batch, and the share of waiting.

        The store is cold at the start.
        """
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

    def _tars(
        self, store: Store, folder: Path, base: Base, layout: MakeLayout, rate: Callable[..., BenchRow]
    ) -> Iterator[BenchRow]:
        """Yield rows of whole trajectories read from tars in order, every pair used, as in the released code."""
        images = next(
            i for i in range(len(store.shards) + 1) if sum(s["count"] for s in store.shards[:i]) >= self.tar_images
        )
        few = Store(store.folder)
        few.shards = few.shards[:images]
        for _ in export_tars(few, folder / "tars", base, layout):
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
            return PairDataset(InMemory(data.record(images=images, dtype=torch.bfloat16)), gaps=data.gaps)

        return OnlineLoader(make, len(images) * data.pairs_an_image, 1, 1, min(data.batch_size, data.pairs_an_image), 0)


def training_step(
    base: Base, shortcut: nn.Module, objective: Objective, optimizer: torch.optim.Optimizer
) -> Callable[[Pairs], None]:
    """Return a function that trains on one batch; the device has finished when it returns."""
    shortcut.to(base.device).requires_grad_(True)

    def train(batch: Pairs) -> None:
        objective(shortcut, base, move_data_to_device(batch, base.device))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronise(base.device)

    return train


def random_store(folder: Path, sampler: Sampler, data: TrajectoryData, images: int, dtype: torch.dtype | None) -> Store:
    """Return a store with `images` images of `random_trajectories`."""
    store = Store(folder, {"base": sampler.base.fingerprint(), **shape(sampler.sampling)})
    for shard in random_trajectories(sampler, data, images, dtype):
        store.append(shard)
    return store


def shape(sampling: Sampling) -> dict[str, int]:
    """Return guidance halves and steps of a trajectory, as in a store's header."""
    return {"copies": 1 + (sampling.guidance is not None), "num_steps": sampling.num_steps}


def random_trajectories(
    sampler: Sampler, data: TrajectoryData, images: int, dtype: torch.dtype | None
) -> Iterator[Trajectories]:
    """Yield shards of the base's shape: normal features, and random tokens revealed in a random order."""
    base, n, guided = sampler.base, sampler.num_steps, sampler.sampling.guidance is not None
    spec = base.spec

    def length(image: int) -> int:
        return max(branch.condition.shape[1] for branch in base.encode(data.inputs(torch.tensor([image])), guided))

    def most_rows() -> int:
        longest = base.encode(data.inputs(torch.tensor([max(range(images), key=length)])), guided)
        empty = torch.full((1, spec.num_tokens), spec.vocab_size, device=base.device)
        with torch.inference_mode():
            return max(base.features(empty, branch, Moment.first(1, n, base.device)).shape[1] for branch in longest)

    rows = most_rows() if dtype else 0
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
    return StatefulLoader(PairDataset(store, gaps=data.gaps), data.batch_size, data.seed, num_workers=data.num_workers)


def forget(folder: Path) -> None:
    """Remove a folder's files from the page cache; files that are still mapped would stay."""
    gc.collect()
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_bytes() -> int:
    """Return the bytes that this process has read from the disk."""
    match = re.search(r"^read_bytes: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
    return int(match[1]) if match else 0


def show(rows: Sequence[BenchRow], title: str) -> None:
    """Print the rows as a table."""
    table = Table("part", "form", "cache", "pairs/s", "MB/s", "ms", "ms waiting", "share", title=title)
    for row in rows:
        milliseconds = row.get("ms", row.get("step_ms"))
        numbers = (row.get("pairs_per_s"), row.get("mb_per_s"), milliseconds, row.get("wait_ms"))
        cells = ["" if number is None else f"{number:.1f}" for number in numbers]
        share = f"{row['wait_share']:.1%}" if "wait_share" in row else ""
        table.add_row(row["part"], row["form"], row.get("cache", ""), *cells, share)
    Plain().print(table)


def draw(rows: Sequence[BenchRow], path: Path) -> None:
    """Draw pairs a second of every form, cold where both were measured, on a logarithmic axis."""
    rates = {row["form"]: row["pairs_per_s"] for row in reversed(rows) if row["part"] == "rate"}
    figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
    bars = axes.barh(list(rates), list(rates.values()), color="tab:blue")
    axes.bar_label(bars, fmt=lambda rate: f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}", padding=3)
    axes.set(xscale="log", xlabel="training pairs per second")
    plain_ticks(axes.xaxis)
    axes.set_xlim(right=3 * max(rates.values()))  # room for the numbers
    write_figure(figure, path, dpi=120)
