"""Pairs of trajectories that the vanilla base makes while a shortcut trains."""

from collections.abc import Callable, Iterator

import torch

from migm.runtime.errors import UserError
from migm.trajectories.dataset import PairDataset, Pairs


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
