"""Generate pairs with the vanilla base while a shortcut trains."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from migm.runtime.errors import UserError
from migm.runtime.kinds import Count
from migm.sampling.sampler import Sampler
from migm.trajectories.collect import announce_online
from migm.trajectories.dataset import InMemory, PairDataset, Pairs, pinned
from migm.trajectories.estimate import Costs, TrainingWork
from migm.trajectories.loader import as_is, whole
from migm.trajectories.storage import DTYPES, DTypeName

if TYPE_CHECKING:
    from migm.trajectories.datamodule import TrajectoryData


class OnlineLoader:
    """Batches from one shard of new images after the other; no shard is stored.

    `make` returns the pairs of the shard of this process with a given number: the same `pairs` pairs at every call. A
    shard is used `reuse` times, each time in another order, which depends on (seed, use). An epoch has `num_shards`
    shards. `ready` is applied to every batch. An index of the data set is `rows` pairs. The state is the number of
    batches consumed: a loader that resumes from it makes the current shard again and yields exactly the batches that
    were left.
    """

    def __init__(
        self,
        make: Callable[[int], PairDataset],
        pairs: int,
        num_shards: int,
        reuse: int,
        batch_size: int,
        seed: int,
        ready: Callable[[Pairs], Pairs] = as_is,
        rows: int = 1,
    ):
        self.make, self.num_shards, self.reuse, self.ready = make, num_shards, reuse, ready
        self.batch_size, self.seed = whole(batch_size, rows), seed
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
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + use)
            order = torch.randperm(len(pairs), generator=generator)
            draw = getattr(pairs, "drawn", None)
            order = draw(order, generator) if draw else order
            self._consumed += 1
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()
            yield self.ready(pairs.__getitems__(chosen))

    def _pairs(self, shard: int) -> PairDataset:
        if self._shard is None or self._shard[0] != shard:
            self._shard = None  # two shards may not fit in memory
            self._shard = (shard, self.make(shard))
        return self._shard[1]

    def state_dict(self) -> dict[str, int]:
        return {"consumed": self._consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._consumed = state["consumed"]


@dataclass(frozen=True)
class Online:
    """Storage without a store: the base generates `data.shard_images` new images at a time, each used `reuse` times.

    Their features are in memory in `dtype`. An epoch has as many images as with the other storages, in whole shards,
    at least one a process; they have the inputs of the training images. The images for validation are the same as with
    the other storages; only their tokens are kept.
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
        """Do nothing, since nothing is stored."""

    def split(self, data: "TrajectoryData") -> tuple[None, PairDataset]:
        """Return the pairs for validation, generated once; there are none for training.

        Lightning calls this both before training and before validation.
        """
        images = torch.arange(data.first_val, data.num_images)
        if data.val is None:
            made = InMemory(data.record(images=images, dtype=None))
            return None, PairDataset(made, together=data.together, gaps=data.gaps)
        return None, data.val

    def train_loader(self, data: "TrajectoryData", rank: int, world_size: int) -> OnlineLoader:
        """Return a loader of new images, numbered from `data.num_images` on.

        No two shards or processes share an image number.
        """
        size = data.shard_images

        def shard(number: int) -> PairDataset:
            first = data.num_images + (number * world_size + rank) * size
            images = torch.arange(first, first + size)
            made = InMemory(data.record(images=images, dtype=DTYPES[self.dtype]))
            return PairDataset(made, together=data.together, gaps=data.gaps)

        num_shards = max(1, data.first_val // (size * world_size))
        pairs, rows = size * data.pairs_an_image, data.copies if data.together else 1
        return OnlineLoader(shard, pairs, num_shards, self.reuse, data.batch_size, data.seed, pinned, rows)
