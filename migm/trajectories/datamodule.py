"""LightningDataModule over a store of trajectories."""

from pathlib import Path

import lightning as L
from torch.utils.data import DataLoader

from migm.runtime import UserError
from migm.trajectories.dataset import PairDataset
from migm.trajectories.loader import StatefulLoader, as_is
from migm.trajectories.store import Store


class TrajectoryData(L.LightningDataModule):
    """Pairs for training from all images of a store but its last `num_val_images`, which validate.

    `folder` is the store and `num_images` how many it should hold (`migm.collect` fills it, with
    `shard_images` images a shard). `verify` reads every shard once and compares its SHA-256.
    """

    def __init__(
        self,
        folder: str | Path,
        num_images: int,
        num_val_images: int,
        batch_size: int,
        shard_images: int = 64,
        collect_batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        verify: bool = True,
    ):
        super().__init__()
        if not 0 < num_val_images < num_images:
            raise UserError(
                f"data.num_val_images={num_val_images} must be between 1 and data.num_images - 1 = {num_images - 1}"
            )
        for key, value in {
            "batch_size": batch_size,
            "shard_images": shard_images,
            "collect_batch_size": collect_batch_size,
        }.items():
            if value < 1:
                raise UserError(f"data.{key}={value} must be at least 1")
        self.folder, self.num_images, self.num_val_images = Path(folder), num_images, num_val_images
        self.batch_size, self.shard_images, self.collect_batch_size = batch_size, shard_images, collect_batch_size
        self.num_workers, self.seed, self.verify = num_workers, seed, verify

    def setup(self, stage: str | None = None) -> None:
        store = Store(self.folder)
        store.verify(contents=self.verify)
        if len(store) < self.num_images:
            raise UserError(
                f"data.num_images={self.num_images}, but {self.folder} holds {len(store)}; run migm.collect"
            )
        first_val = self.num_images - self.num_val_images
        self.train, self.val = PairDataset(store, 0, first_val), PairDataset(store, first_val, self.num_images)

    def train_dataloader(self) -> StatefulLoader:
        return StatefulLoader(self.train, self.batch_size, self.seed, *self._rank(), self.num_workers)

    def val_dataloader(self) -> DataLoader:
        """Always the same pairs in the same order, so that errors compare across runs and resumes."""
        rank, world_size = self._rank()
        own = range(rank, len(self.val), world_size)
        return DataLoader(self.val, self.batch_size, sampler=own, collate_fn=as_is)  # type: ignore[arg-type]

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
