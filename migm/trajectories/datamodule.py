"""Define the LightningDataModule of trajectories; `storage` is the form they are kept in, `source` their place."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor, nn
from torch.utils.data import DataLoader

from migm.bases.base import Inputs
from migm.bases.inputs import InputSource
from migm.runtime.errors import UserError
from migm.runtime.kinds import Count, Halves, Seed, Whole
from migm.sampling.sampler import Sampler
from migm.trajectories.dataset import PairDataset
from migm.trajectories.gaps import Gaps
from migm.trajectories.loader import StatefulLoader, as_is, whole
from migm.trajectories.online import OnlineLoader
from migm.trajectories.record import record
from migm.trajectories.source import Folder, Source
from migm.trajectories.storage import Features, Storage
from migm.trajectories.store import Store
from migm.trajectories.tars import MakeLayout


class TrajectoryData(L.LightningDataModule):
    """Pairs for training, from `num_images` images; the last `num_val_images` of these are for validation.

    By `storage`, pairs are generated while training, or read from the store that `source` opens at `folder`.
    `migm.collect` fills that store with images of `inputs`, `shard_images` a shard. `verify` reads every shard once, in
    one process of a machine, and compares its SHA-256. `tars` is the class of the layout of the released code's tars,
    for `migm.collect import_from=` and `export_to=`.

    A batch is `batch_size` pairs. With `halves` "together" they are both guidance halves of batch_size / 2 images, each
    at one step; "apart" draws every half on its own. None leaves it to the objective of the training.
    """

    def __init__(
        self,
        folder: str | Path,
        inputs: InputSource,
        num_images: Count,
        num_val_images: Count,
        batch_size: Count,
        storage: Storage = Features(),  # noqa: B008
        source: Source = Folder(),  # noqa: B008
        shard_images: Count = 64,
        collect_batch_size: Count = 64,
        num_workers: Whole = 0,
        seed: Seed = 0,
        verify: bool = True,
        tars: MakeLayout | None = None,
        halves: Halves | None = None,
    ):
        super().__init__()
        if num_val_images >= num_images:
            raise UserError(
                f"data.num_val_images={num_val_images} must be between 1 and data.num_images - 1 = {num_images - 1}"
            )
        if storage.in_process and num_workers:
            raise UserError(
                f"data.num_workers={num_workers}: the base runs in this process by data/storage={storage.name}; set 0"
            )
        self.folder, self.inputs, self.storage, self.source, self.tars = folder, inputs, storage, source, tars
        self.num_images, self.num_val_images = num_images, num_val_images
        self.batch_size, self.shard_images, self.collect_batch_size = batch_size, shard_images, collect_batch_size
        self.num_workers, self.seed, self.verify = num_workers, seed, verify
        self.together = halves == "together"
        self.first_val = num_images - num_val_images
        self.train: Any = None  # a PairDataset if the storage has a store, else None
        self.val: PairDataset | None = None
        self.gaps: Gaps | None = None  # steps between those of a pair, for a network that starts from full steps

    def serve(self, network: nn.Module) -> None:
        """Make pairs for what a shortcut network reads; called before `setup`."""
        self.gaps = Gaps.of(network)

    def store(self, header: dict[str, Any] | None = None) -> Store:
        """Return the store at `folder`; it has to match `header`."""
        return self.source.store(self.folder, header)

    def attach(self, sampler: Sampler, seed: int) -> None:
        """Set the vanilla sampler that generates images while training, with the `seed` of their noise."""
        chosen = {"seed": seed, "inputs": self._inputs, "batch_size": self.collect_batch_size}
        self.record = partial(record, sampler, **chosen)
        self.copies = 1 if sampler.sampling.guidance is None else 2
        self.pairs_an_image = self.copies * (sampler.num_steps - 1)

    def _inputs(self, images: Tensor) -> Inputs:
        """Return the inputs of images; from number `num_images` on, they are those of the training images in turn."""
        beyond = (images - self.num_images) % self.first_val
        return self.inputs(beyond.where(images >= self.num_images, images))

    def prepare_data(self) -> None:
        """Verify the stored data once.

        Lightning calls this in one process of a machine, while the others wait, and again to validate.
        """
        if self.verify:
            self.storage.verify(self)
            self.verify = False

    def setup(self, stage: str | None = None) -> None:
        self.train, self.val = self.storage.split(self)
        if self.gaps and not (self.val and self.val.gaps):
            raise UserError(
                f"data/storage={self.storage.name} makes pairs of neighbouring steps alone, and this shortcut starts "
                "from full steps; choose another storage, or shortcut=maskgit"
            )

    def train_dataloader(self) -> StatefulLoader | OnlineLoader:
        return self.storage.train_loader(self, *self._rank())

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return a loader of the same pairs in the same order, so that errors compare across runs and resumes.

        For a network that starts from full steps there are two, of the pairs one step and `most` steps apart: the first
        compares with chained networks.
        """
        assert self.val is not None  # for the type checker: `setup` has set it
        if not self.val.gaps:
            return self._val_loader(range(len(self.val)))
        return [self._val_loader(self.val.of_gap(gap).tolist()) for gap in sorted({1, self.val.gaps.most})]

    def _val_loader(self, pairs: Sequence[int]) -> DataLoader:
        rank, world_size = self._rank()
        share, size = pairs[rank::world_size], whole(self.batch_size, self.val.rows if self.val else 1)
        return DataLoader(self.val, size, sampler=share, collate_fn=as_is)  # type: ignore[arg-type]

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
