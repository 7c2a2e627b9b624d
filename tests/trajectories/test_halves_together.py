"""Both guidance halves of an image at a step are in one batch, in one process, where they are to be together."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_parts import collected, naming, synthetic, tiny

from migm.config.building import build
from migm.runtime.errors import UserError
from migm.sampling.sampler import Sampler
from migm.trajectories.dataset import InMemory, PairDataset, Pairs
from migm.trajectories.loader import StatefulLoader
from migm.trajectories.store import Store

EVERY = [(i, s) for i in range(12) for s in range(3)]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """12 images in shards of 5, 5 and 2."""
    store = Store(tmp_path_factory.mktemp("store"), {"base": "abc", "num_steps": 4, "copies": 2})
    for images in (range(5), range(5, 10), range(10, 12)):
        store.append(synthetic(images))
    return store


def told(batch: Pairs) -> list[tuple[int, int]]:
    """Image and step of every item of a batch, whose halves have to be there in the same order."""
    assert batch.halves_together == 2
    half = len(batch.steps) // 2
    assert batch.halves.tolist() == [0] * half + [1] * half
    for column in (batch.images, batch.steps, batch.tokens, batch.new, batch.masked):
        assert torch.equal(column[:half], column[half:])
    return list(zip(batch.images[:half].tolist(), batch.steps[:half].tolist(), strict=True))


def test_an_index_is_the_pairs_of_both_halves(store):
    apart, together = PairDataset(store), PairDataset(store, together=True)
    assert (len(apart), len(together)) == (72, 36)
    index = torch.randperm(36, generator=torch.Generator().manual_seed(0))[:7]
    pairs = [(i // 3 * 2 + half) * 3 + i % 3 for half in range(2) for i in index.tolist()]
    found, wanted = together.__getitems__(index.tolist()), apart.__getitems__(pairs)
    assert told(found) == [divmod(i, 3) for i in index.tolist()]
    assert wanted.halves_together == 0
    for name, value, same in zip(Pairs._fields, found, wanted, strict=True):
        assert name == "halves_together" or (torch.equal(value, same) if torch.is_tensor(value) else value == same)


def test_pairs_say_when_every_token_is_revealed(store):
    batch = PairDataset(store).__getitems__(range(10))
    assert torch.equal(batch.order > batch.steps[:, None], batch.masked)
    assert torch.equal(batch.order == batch.steps[:, None], batch.new)
    assert batch.most_masked == int(batch.masked.sum(1).max())


def test_a_trajectory_without_guidance_has_one_half(store):
    made = synthetic(range(3))
    one = replace(made, features=made.features[:, :1], conditions=made.conditions[:, :1])
    data = PairDataset(InMemory(one), together=True)
    assert (len(data), data.rows) == (9, 1)
    assert data.__getitems__([4]).halves_together == 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_no_process_or_worker_splits_an_image_at_a_step(store, world_size, workers):
    data = PairDataset(store, together=True)
    size = 24 // world_size  # pairs
    ranks = [StatefulLoader(data, size, 3, rank, world_size, workers) for rank in range(world_size)]
    alone = StatefulLoader(data, 24, 3)
    for _ in range(2):
        batches = [[told(batch) for batch in loader] for loader in ranks]
        whole = [told(batch) for batch in alone]
        assert [[item for part in parts for item in part] for parts in zip(*batches, strict=True)] == whole
        assert [len(batch) for batch in whole] == [12] * 3
        assert sorted(item for batch in whole for item in batch) == EVERY


def test_a_resumed_epoch_yields_the_batches_that_were_left(store):
    data = PairDataset(store, together=True)
    whole = [told(batch) for batch in StatefulLoader(data, 8, 5)]
    first, second = StatefulLoader(data, 8, 5), StatefulLoader(data, 8, 5)
    batches = iter(first)
    seen = [told(next(batches)) for _ in range(4)]
    second.load_state_dict(first.state_dict())
    assert seen + [told(batch) for batch in second] == whole


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("data")
    collected(tiny(output))
    return output


@pytest.mark.parametrize("rank", [0, 1])
def test_validation_is_split_by_image_and_step(output, rank):
    data = build(tiny(output, "data.halves=together").data)
    data.setup()
    data._rank = lambda: (rank, 2)
    batches = [told(batch) for batch in data.val_dataloader()]
    assert [item for batch in batches for item in batch] == [(8 + i // 5, i % 5) for i in range(rank, 20, 2)]
    assert max(map(len, batches)) == 4  # of data.batch_size=8 pairs


def test_images_made_while_training_keep_their_halves_together(output):
    config = tiny(output, "data.halves=together", "data/storage=online")
    data = build(config.data)
    data.attach(Sampler(build(config.base), build(config.sampling)), config.seed)
    data.setup()
    loader = data.train_dataloader()
    batches = [told(batch) for batch in loader]
    assert [len(batch) for batch in batches] == [4] * len(loader) == [4] * 6
    assert len({item for batch in batches for item in batch}) == 24
    told(next(iter(data.val_dataloader())))


@pytest.mark.parametrize("storage", ["features", "online"])
def test_an_odd_batch_is_refused(output, storage):
    config = tiny(output, "data.halves=together", "data.batch_size=5", f"data/storage={storage}")
    data = build(config.data)
    data.attach(Sampler(build(config.base), build(config.sampling)), config.seed)
    data.setup()
    with pytest.raises(UserError, match=naming("data.batch_size=5", "multiple of 2")):
        data.train_dataloader()
