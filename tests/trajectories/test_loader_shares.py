"""Ranks and workers together read the stored data set: all of it, each pair once, in the order of one process."""

import pytest
import torch
from tiny_parts import synthetic

from migm.trajectories.dataset import PairDataset, Pairs
from migm.trajectories.loader import StatefulLoader
from migm.trajectories.store import Store

PAIRS = 2 * 3  # of an image: two halves, three pairs of steps


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> PairDataset:
    """12 images in shards of 5, 5 and 2."""
    store = Store(tmp_path_factory.mktemp("store"), {"base": "abc", "num_steps": 4, "copies": 2})
    for images in (range(5), range(5, 10), range(10, 12)):
        store.append(synthetic(images))
    return PairDataset(store)


def told(batch: Pairs) -> list[tuple[int, int, int]]:
    """Which pairs a batch holds: image, half, step."""
    columns = (column.tolist() for column in (batch.images, batch.halves, batch.steps))
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_union_over_ranks_and_workers_is_the_data_set(dataset, world_size, workers):
    size = 12 // world_size
    ranks = [StatefulLoader(dataset, size, 3, rank, world_size, workers) for rank in range(world_size)]
    alone = StatefulLoader(dataset, 12, 3)
    for _ in range(2):
        batches = [[told(batch) for batch in loader] for loader in ranks]
        whole = [told(batch) for batch in alone]
        assert [[pair for part in parts for pair in part] for parts in zip(*batches, strict=True)] == whole
        seen = [pair for batch in whole for pair in batch]
        assert sorted(seen) == [(i, h, s) for i in range(12) for h in range(2) for s in range(3)]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_with_a_rest_ranks_are_as_long_and_disjoint_and_later_epochs_see_what_one_left_out(dataset, workers):
    ranks = [StatefulLoader(dataset, 5, 3, rank, 3, workers) for rank in range(3)]
    seen: set[tuple[int, int, int]] = set()
    for _ in range(8):
        batches = [[told(batch) for batch in loader] for loader in ranks]
        assert [len(found) for found in batches] == [12 * PAIRS // 15] * 3
        pairs = [pair for found in batches for batch in found for pair in batch]
        assert len(set(pairs)) == len(pairs) == 60
        seen |= set(pairs)
    assert len(seen) == 12 * PAIRS


def test_what_a_rank_reads_are_the_pairs_themselves(dataset):
    images = synthetic(range(12))
    batch = next(iter(StatefulLoader(dataset, 6, 3, 1, 2, 2)))
    where = (batch.images, batch.halves, batch.steps)
    assert torch.equal(batch.features, images.features[where])
    assert torch.equal(batch.target, images.features[where[0], where[1], where[2] + 1])
