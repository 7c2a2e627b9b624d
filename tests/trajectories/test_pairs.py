"""Training pairs: what a shortcut sees of two consecutive steps."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_parts import collected, naming, synthetic, tiny

from migm.config import build
from migm.runtime import UserError
from migm.sampling.schedule import Increments
from migm.trajectories.dataset import PairDataset, pair_batch
from migm.trajectories.store import Store

MADE = Path(os.environ.get("MIGM_VECTORS", Path(__file__).parents[3] / "shared" / "vectors"))
MADE = MADE / "maskgit_makedata.safetensors"
recorded = pytest.mark.skipif(not MADE.exists(), reason="recorded cases are not here (MIGM_VECTORS)")
HEADER = {"base": "x", "copies": 2, "num_steps": 4, "seed": 0}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Eleven images in shards of four."""
    store = Store(tmp_path_factory.mktemp("pairs"), HEADER)
    for images in (range(4), range(4, 8), range(8, 11)):
        store.append(synthetic(images))
    return store


def slow_pair(image: int, half: int, s: int) -> dict[str, torch.Tensor]:
    """One pair of a synthetic image, token by token."""
    made = synthetic([image])
    order, tokens = made.order[0].tolist(), made.tokens[0].tolist()
    new = [p for p in range(len(order)) if order[p] == s]
    masked = [order[p] > s for p in range(len(order))]
    return {
        "features": made.features[0, half, s],
        "target": made.features[0, half, s + 1],
        "new_positions": torch.tensor(new),
        "new_tokens": torch.tensor([tokens[p] for p in new]),
        "masked": torch.tensor(masked),
        "mask_ratio": torch.tensor(sum(masked) / len(masked)),
        "steps": torch.tensor(s),
    }


def test_every_pair_is_that_of_a_slow_recomputation(store):
    data = PairDataset(store)
    assert len(data) == 11 * 2 * 3
    wanted = [slow_pair(image, half, s) for image in range(11) for half in range(2) for s in range(3)]
    # A shuffled batch mixes shards and steps of different counts, so that padding is exercised.
    index = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    batch = data.__getitems__(index.tolist())
    for row, i in enumerate(index.tolist()):
        slow, k = wanted[i], len(wanted[i]["new_positions"])
        assert batch.new_mask[row].tolist() == [j < k for j in range(batch.new_mask.shape[1])]
        for name, value in slow.items():
            found = getattr(batch, name)[row]
            found = found[:k] if name.startswith("new") else found
            assert torch.equal(found, value.to(found.dtype)), (name, i)
        assert not batch.new_tokens[row, k:].any()
        assert not batch.new_positions[row, k:].any()


def test_a_batch_is_no_wider_than_its_longest_step(store):
    steps = torch.tensor([2, 2])
    made = synthetic([0, 1])
    batch = pair_batch(made.features[:, 0, 2], made.features[:, 0, 3], made.tokens, made.order, steps)
    assert batch.new_tokens.shape == (2, 1)


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


@recorded
@pytest.mark.parametrize("s", [0, 1, 2])
def test_pairs_agree_with_the_original_expansion(s):
    made, key = load_file(MADE), "00012_000_3_uncond"
    features, tokens = made[f"{key}/feat.pth"], made[f"{key}/teacher_vq_ids.pth"][:16]
    order = made[f"{key}/generation_order.pth"][:16]
    batch = pair_batch(features[[s]], features[[s + 1]], tokens[None], order[None], torch.tensor([s]))
    sample = {k.rsplit("/", 1)[1]: v for k, v in made.items() if k.startswith(f"sample/{key}/{s}/")}
    masked = sample["cur_token_ids"][:16] == 24
    assert torch.equal(batch.features[0], sample["prev_feat"])
    assert torch.equal(batch.target[0], sample["tgt_feat"])
    assert torch.equal(batch.new_tokens[0], sample["new_token_ids"])
    assert torch.equal(batch.new_positions[0], sample["new_token_map"].nonzero()[:, 0])
    assert torch.equal(batch.masked[0], masked)
    assert torch.equal(batch.masked[0], sample["tgt_vq_ids"][:16] != -100)
    assert batch.mask_ratio.item() == masked.sum().item() / 16


@recorded
def test_mask_ratios_are_the_original_table_of_512_pixels():
    table = load_file(MADE)["mask_ratio_table_15"]
    counts = torch.tensor(Increments("arccos").counts(1024, 15))
    order = torch.arange(15).repeat_interleave(counts).expand(14, -1)
    features = torch.zeros(14, 1, 1)
    batch = pair_batch(features, features, torch.zeros_like(order), order, torch.arange(14))
    assert torch.equal(batch.mask_ratio, table)


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


@pytest.mark.parametrize("number", [0, 12, 40])
def test_validation_needs_some_but_not_all_images(stored, number):
    with pytest.raises(ValueError, match=f"data.num_val_images={number}"):
        build(tiny(stored, f"data.num_val_images={number}").data)
