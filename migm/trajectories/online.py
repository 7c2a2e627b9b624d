"""Pairs of trajectories that the vanilla base makes while a shortcut trains."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from migm.runtime.errors import UserError
from migm.runtime.kinds import Count
from migm.sampling.sampler import Sampler
from migm.trajectories.collect import announce_online
from migm.trajectories.dataset import InMemory, PairDataset, Pairs
from migm.trajectories.estimate import Costs, TrainingWork
from migm.trajectories.storage import DTYPES, DTypeName

if TYPE_CHECKING:
    from migm.trajectories.datamodule import TrajectoryData


class OnlineLoader:
    """Batches of one shard of new images after the other, none of which is stored.

    `make` gives the pairs of this process's shard of a number, always the same ones, `pairs` of them.
    They are used `reuse` times, each time in another order, that of (seed, use); an epoch is
    `num_shards` shards. The state is how many batches were consumed: a loader that goes on from
    it makes the shard at hand again and yields exactly what is left.
    """

    def __init__(
        self, make: Callable[[int], PairDataset], pairs: int, num_shards: int, reuse: int, batch_size: int, seed: int
    ):
        self.make, self.num_shards, self.reuse = make, num_shards, reuse
        self.batch_size, self.seed = batch_size, seed
        self.batches_a_use = pairs // batch_size
        if not self.batches_a_use:
            raise UserError(
                f"data.batch_size={batch_size}, but the images of a shard give {pairs} pairs; raise data.shard_images"
            )
        self._consumed = 0
        self._shard: tuple[int, PairDataset] | None = None

    def __len__(self) -> int:
        return self.num_shards * self.reuse * self.batches_a_use

    def __iter__(self) -> Iterator[Pairs]:
        end = (self._consumed // len(self) + 1) * len(self)
        while self._consumed < end:
            use, batch = divmod(self._consumed, self.batches_a_use)
            pairs = self._pairs(use // self.reuse)
            order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + use))
            self._consumed += 1
            yield pairs.__getitems__(order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist())

    def _pairs(self, shard: int) -> PairDataset:
        if self._shard is None or self._shard[0] != shard:
            self._shard = None  # two of them may not fit in memory
            self._shard = (shard, self.make(shard))
        return self._shard[1]

    def state_dict(self) -> dict[str, int]:
        return {"consumed": self._consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._consumed = state["consumed"]


@dataclass(frozen=True)
class Online:
    """Nothing is stored: the base generates `data.shard_images` new images at a time, each used `reuse` times.

    Their features are in memory in `dtype`. An epoch takes as many images as in the other storages, of the training
    images' inputs; the validating images are the same ones as there, kept as tokens.
    """

    dtype: DTypeName = "bfloat16"
    reuse: Count = 1
    name: str = "online"
    stores, in_process = False, True

    def costs(self, work: TrainingWork) -> Costs:
        images = work.pairs / (work.copies * (work.num_steps - 1) * self.reuse)
        memory = work.feature_bytes(work.shard_images, DTYPES[self.dtype])
        return Costs(memory=memory, during=images * work.seconds_an_image)

    def prepare(
        self, sampler: Sampler, data: "TrajectoryData", seed: int, train_steps: int, filling: bool = True
    ) -> None:
        announce_online(sampler, data, train_steps)

    def verify(self, data: "TrajectoryData") -> None:
        """Nothing to read."""

    def split(self, data: "TrajectoryData") -> tuple[None, PairDataset]:
        """Lightning sets up for training and for validating; the validating pairs are generated once."""
        images = torch.arange(data.first_val, data.num_images)
        return None, data.val or PairDataset(InMemory(data.record(images=images, dtype=None)))

    def train_loader(self, data: "TrajectoryData", rank: int, world_size: int) -> OnlineLoader:
        """Shards of this process hold images of numbers of their own, behind those of a store."""
        size = data.shard_images

        def shard(number: int) -> PairDataset:
            first = data.num_images + (number * world_size + rank) * size
            images = torch.arange(first, first + size)
            return PairDataset(InMemory(data.record(images=images, dtype=DTYPES[self.dtype])))

        num_shards = max(1, data.first_val // (size * world_size))
        return OnlineLoader(shard, size * data.pairs_an_image, num_shards, self.reuse, data.batch_size, data.seed)
