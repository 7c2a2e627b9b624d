"""Training pairs: what a shortcut sees of two consecutive steps."""

from pathlib import Path

import pytest
import torch
from tiny_parts import collected, naming, synthetic, tiny

from migm.config.building import build
from migm.runtime.errors import UserError
from migm.trajectories.dataset import PairDataset, padded_positions
from migm.trajectories.store import Store

HEADER = {"base": "x", "copies": 2, "num_steps": 4, "seed": 0}
SHARDS = {10: range(4), 12: range(4, 8), 11: range(8, 11)}  # rows of the sequences: images


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Eleven images in shards of four."""
    store = Store(tmp_path_factory.mktemp("pairs"), HEADER)
    for images in (range(4), range(4, 8), range(8, 11)):
        store.append(synthetic(images))
    return store


def slow_pair(image: int, half: int, s: int, rows: int = 10) -> dict[str, torch.Tensor]:
    """One pair of a synthetic image, token by token."""
    made = synthetic([image], rows=rows)
    order, tokens = made.order[0].tolist(), made.tokens[0].tolist()
    new = [p for p in range(len(order)) if order[p] == s]
    masked = [order[p] > s for p in range(len(order))]
    return {
        "features": made.features[0, half, s],
        "target": made.features[0, half, s + 1],
        "tokens": torch.tensor(tokens),
        "new": torch.tensor([p in new for p in range(len(order))]),
        "masked": torch.tensor(masked),
        "steps": torch.tensor(s),
        "conditions": made.conditions[0, half].long(),
        "halves": torch.tensor(half),
        "images": torch.tensor(image),
    }


def test_every_pair_is_that_of_a_slow_recomputation(store):
    data = PairDataset(store)
    assert len(data) == 11 * 2 * 3
    wanted = [slow_pair(image, half, s) for image in range(11) for half in range(2) for s in range(3)]
    # A shuffled batch mixes shards and steps of different counts, so that padding is exercised.
    index = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    batch = data.__getitems__(index.tolist())
    for row, i in enumerate(index.tolist()):
        for name, value in wanted[i].items():
            assert torch.equal(getattr(batch, name)[row], value), (name, i)
    assert batch.width == 3


def test_pairs_of_shards_with_sequences_of_different_length_are_padded(tmp_path):
    """The features' padding only has to be finite; a condition's is -1."""
    store = Store(tmp_path / "mixed", HEADER)
    for rows, images in SHARDS.items():
        store.append(synthetic(images, rows=rows))
    data = PairDataset(store)
    index = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    batch = data.__getitems__(index)
    assert (batch.features.shape, batch.conditions.shape) == ((66, 12, 4), (66, 3))
    assert batch.features.isfinite().all()
    assert batch.target.isfinite().all()
    rows_of = {image: rows for rows, images in SHARDS.items() for image in images}
    for row, i in enumerate(index):
        image, half, s = i // 6, i // 3 % 2, i % 3
        for name, value in slow_pair(image, half, s, rows_of[image]).items():
            found = getattr(batch, name)[row]
            known = found[: len(value)] if value.ndim else found
            assert torch.equal(known, value), (name, i)
            assert name != "conditions" or (found[len(value) :] == -1).all()
    alone = data.__getitems__([0])  # of the first shard alone: no padding
    assert (alone.features.shape, alone.conditions.shape) == ((1, 10, 4), (1, 1))


def test_positions_ascend_and_are_padded():
    new = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]]).bool()
    positions, mask = padded_positions(new, 2)
    assert positions.tolist() == [[1, 3], [3, 0], [0, 0]]
    assert mask.tolist() == [[True, True], [True, False], [False, False]]


def test_a_batch_is_no_wider_than_its_longest_step(store):
    third = [image * 6 + 2 for image in range(5)]
    assert PairDataset(store).__getitems__(third).width == 1


def test_a_range_of_images_holds_their_pairs_only(store):
    part = PairDataset(store, 3, 9)
    assert len(part) == 6 * 6
    first, last = part.__getitems__([0]), part.__getitems__([len(part) - 1])
    assert torch.equal(first.features[0], synthetic([3]).features[0, 0, 0])
    assert torch.equal(last.target[0], synthetic([8]).features[0, 1, 3])


@pytest.mark.parametrize("window", [1, 2, 16])
def test_an_order_covers_every_pair_once_and_depends_on_the_generator_alone(store, window, monkeypatch):
    monkeypatch.setattr(PairDataset, "window", window)
    orders = [PairDataset(store).order(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert orders[2].sort().values.tolist() == list(range(66))


def test_an_order_of_a_range_covers_its_pairs_once(store):
    order = PairDataset(store, 3, 9).order(torch.Generator().manual_seed(0))
    assert order.sort().values.tolist() == list(range(36))


def test_a_window_keeps_a_batch_in_few_shards(store, monkeypatch):
    monkeypatch.setattr(PairDataset, "window", 1)
    data = PairDataset(store)
    shards = data.where[data.order(torch.Generator().manual_seed(0)) // 6, 0]
    assert (shards.diff() != 0).sum() == 2


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """An output folder whose tiny trajectories are complete."""
    output = tmp_path_factory.mktemp("data")
    collected(tiny(output))
    return output


def test_the_last_images_validate_and_the_others_train(stored):
    data = build(tiny(stored).data)
    data.setup()
    assert (len(data.train), len(data.val)) == (8 * 2 * 5, 4 * 2 * 5)
    images = torch.cat([data.train.store.open(i)["features"] for i in range(3)])
    assert torch.equal(data.train.__getitems__([0]).features[0], images[0, 0, 0])
    assert torch.equal(data.val.__getitems__([0]).features[0], images[8, 0, 0])


def test_an_incomplete_store_is_refused_naming_the_key(stored):
    data = build(tiny(stored, "data.num_images=13").data)
    with pytest.raises(UserError, match=naming("data.num_images=13", "12")):
        data.setup()


@pytest.mark.parametrize("number", [12, 40])
def test_validation_needs_some_but_not_all_images(stored, number):
    with pytest.raises(ValueError, match=f"data.num_val_images={number}"):
        build(tiny(stored, f"data.num_val_images={number}").data)
