"""LightningDataModule over trajectories: stored with features, stored as tokens, or generated while training."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.refresh import Always
from migm.bases.base import Base, Inputs
from migm.bases.inputs import InputSource
from migm.runtime.errors import UserError
from migm.runtime.files import is_url
from migm.runtime.kinds import Count, Seed, Whole
from migm.sampling.loop import Sampling
from migm.trajectories.dataset import InMemory, PairDataset
from migm.trajectories.loader import StatefulLoader, as_is
from migm.trajectories.online import OnlineLoader
from migm.trajectories.record import record
from migm.trajectories.store import Store

Storage = Literal["features", "tokens", "online"]
DTypeName = Literal["bfloat16", "float32", "int8"]
DTYPES: dict[DTypeName, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8}


class TrajectoryData(L.LightningDataModule):
    """Pairs for training from `num_images` images but the last `num_val_images`, which validate.

    By `storage` "features" and "tokens" the images are those of the store in `folder` (`migm.collect` fills it
    with images of what `inputs` asks for, `shard_images` a shard). The former holds features in `dtype`, bfloat16,
    float32, or int8 with a scale for each row. The latter leaves them to the base, two passes for every pair and epoch.
    `verify` reads every shard once, in one process of a machine, and compares its SHA-256. A `folder` that is a URL
    is read through `cache`, which holds `cache_bytes` of it at most.

    By "online" nothing is stored. The base (`attach`) generates `shard_images` new images of the training images'
    inputs, trains on their features, in memory in `dtype`, `reuse` times, and goes on to the next; an epoch takes
    as many images as in the other modes. The validating images are the same ones as there, kept as tokens.
    """

    def __init__(
        self,
        folder: str | Path,
        inputs: InputSource,
        num_images: Count,
        num_val_images: Count,
        batch_size: Count,
        shard_images: Count = 64,
        collect_batch_size: Count = 64,
        num_workers: Whole = 0,
        seed: Seed = 0,
        verify: bool = True,
        storage: Storage = "features",
        dtype: DTypeName = "bfloat16",
        reuse: Count = 1,
        cache: str | Path = "cache",
        cache_bytes: Whole = 100_000_000_000,
    ):
        super().__init__()
        if num_val_images >= num_images:
            raise UserError(
                f"data.num_val_images={num_val_images} must be between 1 and data.num_images - 1 = {num_images - 1}"
            )
        if storage == "online" and num_workers:
            raise UserError(
                f"data.num_workers={num_workers}: the base runs in this process by data.storage=online; set 0"
            )
        self.folder, self.inputs = folder, inputs
        self.cache, self.cache_bytes = cache, cache_bytes
        self.num_images, self.num_val_images = num_images, num_val_images
        self.batch_size, self.shard_images, self.collect_batch_size = batch_size, shard_images, collect_batch_size
        self.num_workers, self.seed, self.verify = num_workers, seed, verify
        self.storage, self.dtype, self.reuse = storage, DTYPES[dtype], reuse
        self.first_val = num_images - num_val_images
        self.val: PairDataset | None = None

    @property
    def kept(self) -> torch.dtype | None:
        """In what features are stored; None: they are not."""
        return self.dtype if self.storage == "features" else None

    def store(self, header: dict[str, Any] | None = None) -> Store:
        """The store in `folder`; one at a URL is refused where `cache_bytes` cannot hold what is read together."""
        if not is_url(self.folder):
            return Store(self.folder, header)
        from migm.trajectories.remote import Remote  # its locks are not to be had on every system

        remote = Remote(str(self.folder), self.cache, self.cache_bytes)
        store = Store(self.folder, header, remote)
        # A batch may lie across two windows, and a validating one across two shards.
        remote.need(store.shards, 2 * PairDataset.window + 2)
        return store

    def attach(self, base: Base, sampling: Sampling, seed: int) -> None:
        """What storage "online" generates images with; `seed` is that of their noise."""
        chosen = {"seed": seed, "inputs": self._inputs, "batch_size": self.collect_batch_size}
        self.record = partial(record, base, sampling, Accelerator(Always()), **chosen)
        self.pairs_an_image = (1 if sampling.guidance is None else 2) * (sampling.num_steps - 1)

    def _inputs(self, images: Tensor) -> Inputs:
        """Images behind those of a store show what the training images show, in turn."""
        beyond = (images - self.num_images) % self.first_val
        return self.inputs(beyond.where(images >= self.num_images, images))

    def prepare_data(self) -> None:
        """Lightning calls this in one process of a machine, while the others wait, and again to validate."""
        if self.verify and self.storage != "online":
            self.store().verify()
            self.verify = False

    def setup(self, stage: str | None = None) -> None:
        if self.storage == "online":
            # Once, though Lightning sets up for training and for validating.
            val = torch.arange(self.first_val, self.num_images)
            self.val = self.val or PairDataset(InMemory(self.record(images=val, dtype=None)))
            return
        store = self.store()
        store.verify(contents=False)
        if len(store) < self.num_images:
            raise UserError(
                f"data.num_images={self.num_images}, but {self.folder} holds {len(store)}; run migm.collect"
            )
        self.train = PairDataset(store, 0, self.first_val)
        self.val = PairDataset(store, self.first_val, self.num_images)
        self.val.window = 1  # read in order

    def train_dataloader(self) -> StatefulLoader | OnlineLoader:
        rank, world_size = self._rank()
        if self.storage != "online":
            return StatefulLoader(self.train, self.batch_size, self.seed, rank, world_size, self.num_workers)
        num_shards = max(1, self.first_val // (self.shard_images * world_size))
        pairs = self.shard_images * self.pairs_an_image
        return OnlineLoader(self._shard, pairs, num_shards, self.reuse, self.batch_size, self.seed)

    def val_dataloader(self) -> DataLoader:
        """Always the same pairs in the same order, so that errors compare across runs and resumes."""
        rank, world_size = self._rank()
        own = range(rank, len(self.val or ()), world_size)
        return DataLoader(self.val, self.batch_size, sampler=own, collate_fn=as_is)  # type: ignore[arg-type]

    def _shard(self, number: int) -> PairDataset:
        """Generate shard `number` of this process: images of numbers of their own, behind those of a store."""
        rank, world_size = self._rank()
        first = self.num_images + (number * world_size + rank) * self.shard_images
        images = torch.arange(first, first + self.shard_images)
        return PairDataset(InMemory(self.record(images=images, dtype=self.dtype)))

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
