"""Load batches in an order that depends on (seed, epoch) alone, and resume exactly within an epoch."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Sampler

from migm.runtime.errors import UserError


class BatchDataset(Protocol):
    """A map-style dataset that builds a whole batch at once."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> Any: ...


class BatchOrder(Sampler[list[int]]):
    """The batches of one rank; all ranks have equally many, and no sample comes twice in an epoch.

    The last `len % (batch_size * world_size)` samples of an epoch's order are skipped in that epoch; another epoch
    skips others. A dataset may offer `order(generator)` to shuffle within groups of shards; otherwise the order is a
    plain permutation. It may say how many `rows` of a batch one of its samples is; `batch_size` counts rows.
    """

    def __init__(self, dataset: BatchDataset, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        rows = getattr(dataset, "rows", 1)
        self.dataset, self.batch_size, self.seed = dataset, whole(batch_size, rows), seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self.start = 0
        if len(self) == 0:
            raise ValueError(
                f"data.batch_size={batch_size} on {world_size} process(es) needs {batch_size * world_size} samples, "
                f"but there are {len(dataset) * rows}; lower data.batch_size or collect more"
            )

    def __len__(self) -> int:
        return len(self.dataset) // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        shuffle = getattr(self.dataset, "order", None)
        order = shuffle(generator) if shuffle else torch.randperm(len(self.dataset), generator=generator)
        batches = order[: len(self) * self.batch_size * self.world_size].view(len(self), self.world_size, -1)
        for batch in batches[self.start :, self.rank]:
            yield batch.tolist()


class StatefulLoader(DataLoader):
    """A DataLoader whose state Lightning saves in checkpoints and restores from them.

    The state is (epoch, batches consumed). A resumed run gets exactly the batches that were left, with any number of
    workers. Without workers, a thread reads one batch ahead.
    """

    def __init__(
        self,
        dataset: BatchDataset,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ):
        self.batch_order = BatchOrder(dataset, batch_size, seed, rank, world_size)
        self._consumed = 0
        super().__init__(
            dataset,  # type: ignore[arg-type]
            batch_sampler=self.batch_order,
            collate_fn=as_is,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
        )

    def __len__(self) -> int:
        return len(self.batch_order)

    def __iter__(self) -> Iterator[Any]:
        order = self.batch_order
        # Not at the end of the loop below: Lightning knows the length and asks for nothing after the last batch.
        if self._consumed >= len(self):
            order.epoch, order.start, self._consumed = order.epoch + 1, 0, 0
        batches = super().__iter__() if self.num_workers else ahead(super().__iter__())
        for self._consumed, batch in enumerate(batches, order.start + 1):
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.batch_order.epoch, "batch": self._consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        done = state["batch"] >= len(self)
        self.batch_order.epoch = state["epoch"] + int(done)
        self.batch_order.start = self._consumed = 0 if done else state["batch"]


def whole(batch_size: int, rows: int) -> int:
    """Return how many samples of `rows` pairs fill a batch; UserError if they leave a rest."""
    if batch_size % rows:
        raise UserError(
            f"data.batch_size={batch_size} must be a multiple of {rows}: a batch holds both guidance halves of an image"
        )
    return batch_size // rows


def ahead(items: Iterator[Any]) -> Iterator[Any]:
    """Yield the items; a thread fetches the next item while one is in use."""
    end = object()
    # torch gets one thread here: a second team of threads beside that of the training made a step half as slow again.
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item


def as_is(batch: Any) -> Any:
    """Return the batch unchanged; the collate function of datasets that build whole batches."""
    return batch
