"""Pairs whose steps are further apart, for networks that start from full steps: against a slow construction."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from tiny_parts import collected, naming, synthetic, tiny

from migm.config.building import build
from migm.runtime.errors import UserError
from migm.sampling.sampler import Sampler
from migm.shortcuts.anchored import AnchoredShortcut
from migm.shortcuts.history import HistoryShortcut
from migm.trajectories.dataset import InMemory, PairDataset
from migm.trajectories.estimate import measure_work
from migm.trajectories.gaps import Gaps
from migm.trajectories.loader import StatefulLoader
from migm.trajectories.record import record
from migm.trajectories.replay import with_features
from migm.trajectories.store import Store

N = 4  # steps of the synthetic trajectories
BOTH = Gaps(2, earlier=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Six images in two shards, the second with longer sequences."""
    store = Store(tmp_path_factory.mktemp("gaps"), {"base": "x", "copies": 2, "num_steps": N, "seed": 0})
    store.append(synthetic(range(4)))
    store.append(synthetic(range(4, 6), rows=12))
    return store


def drawn(data: PairDataset, seed: int = 0) -> list[int]:
    return data.order(torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("gaps", [Gaps(1), Gaps(3), Gaps(3, earlier=True), BOTH])
def test_every_pair_is_that_of_a_slow_construction(store, gaps):
    data = PairDataset(store, gaps=gaps)
    batch = data.__getitems__(drawn(data))
    assert len(batch.steps) == 6 * 2 * (N - 1)
    for i, (image, half, s) in enumerate(zip(batch.images.tolist(), batch.halves, batch.steps.tolist(), strict=True)):
        rows = 10 if image < 4 else 12
        made, g = synthetic([image], rows=rows), int(batch.gaps[i])
        assert 1 <= g <= gaps.most
        assert s + g < N
        assert torch.equal(batch.features[i, :rows], made.features[0, half, s])
        assert torch.equal(batch.target[i, :rows], made.features[0, half, s + g])
        order = made.order[0].tolist()
        assert batch.new[i].tolist() == [s <= step < s + g for step in order]
        assert batch.masked[i].tolist() == [step >= s + g for step in order]
        if not gaps.earlier:
            continue
        d = int(batch.spans[i])
        assert (d == 0) == (s == 0)
        assert 0 <= d <= min(s, gaps.most + 1)
        assert torch.equal(batch.earlier[i, :rows], made.features[0, half, s - d])
        assert batch.order[i].tolist() == order
    assert batch.width == max(batch.new.sum(1).tolist())
    assert (batch.earlier is None) == (not gaps.earlier)


def test_without_gaps_pairs_are_as_ever_and_read_nothing_more(store):
    plain, one = PairDataset(store), PairDataset(store, gaps=Gaps(1))
    assert drawn(plain) == drawn(one)
    first, second = (data.__getitems__(drawn(data)[:9]) for data in (plain, one))
    for name in ("features", "target", "new", "masked", "tokens", "steps"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert first.gaps is first.earlier is first.spans is None
    assert second.gaps.tolist() == [1] * 9


def test_distances_are_uniform_and_a_function_of_the_generator():
    gaps, s = Gaps(3, earlier=True), torch.arange(9).repeat(4000)
    codes = [gaps.code(s, 10, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])
    found = gaps.distances(codes[0])
    for step, most, spans in ((0, 3, [0]), (1, 3, [1]), (3, 3, [1, 2, 3]), (6, 3, [1, 2, 3, 4]), (8, 1, [1, 2, 3, 4])):
        for values, wanted in ((found.gaps, list(range(1, most + 1))), (found.spans, spans)):
            counts = Counter(values[s == step].tolist())
            assert sorted(counts) == wanted
            assert max(counts.values()) < 1.15 * min(counts.values())


def test_an_epoch_has_every_pair_once_with_other_gaps_in_the_next(store):
    data = PairDataset(store, gaps=BOTH)
    orders = [torch.tensor(drawn(data, seed)) for seed in (0, 1)]
    assert all(sorted((order % len(data)).tolist()) == list(range(len(data))) for order in orders)
    first, second = (order.sort().values // len(data) for order in orders)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resume_inside_an_epoch_draws_the_same_gaps(store, workers):
    def loader():
        return StatefulLoader(PairDataset(store, gaps=BOTH), 6, seed=3, num_workers=workers)

    def told(batch):
        return [x.tolist() for x in (batch.images, batch.halves, batch.steps, batch.gaps, batch.spans)]

    first = loader()
    whole = [told(batch) for _ in range(2) for batch in first]
    assert whole[: len(first)] != whole[len(first) :]
    stopped = loader()
    batches = iter(stopped)
    seen = [told(next(batches)) for _ in range(2)]
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    assert seen + [told(batch) for _ in range(2) for batch in resumed] == whole


def test_a_longest_gap_that_no_trajectory_has_is_cut(store):
    data = PairDataset(store, gaps=Gaps(20))
    assert data.gaps.most == N - 1
    assert data.__getitems__(drawn(data)).gaps.max() == N - 1


def test_pairs_of_one_gap_are_all_that_reach_so_far_and_always_the_same(store):
    data = PairDataset(store, gaps=Gaps(3, earlier=True))
    for gap in (1, 3):
        index = data.of_gap(gap)
        assert torch.equal(index, data.of_gap(gap))
        batch = data.__getitems__(index.tolist())
        assert batch.gaps.tolist() == [gap] * (12 * (N - gap))
        assert (batch.steps + gap < N).all()
    assert len(set((data.of_gap(1) % len(data)).tolist())) == len(data)


@pytest.mark.parametrize("gaps", [Gaps(3), Gaps(3, earlier=True)])
def test_replayed_features_are_the_stored_ones(make_base, make_sampling, gaps):
    sampler = Sampler(make_base(dtype="float32"), make_sampling())
    chosen = {"seed": 0, "inputs": lambda numbers: numbers % 10, "batch_size": 2}
    kept, lean = (
        PairDataset(InMemory(record(sampler, torch.arange(2), **chosen, dtype=dtype)), gaps=gaps)
        for dtype in (torch.float32, None)
    )
    index = drawn(kept)
    stored, batch = kept.__getitems__(index), lean.__getitems__(index)
    assert batch.features.numel() == 0
    made = with_features(batch, sampler.base)
    for name in ("features", "target", "earlier"):
        if getattr(stored, name) is not None:
            torch.testing.assert_close(getattr(made, name), getattr(stored, name), rtol=1e-4, atol=1e-5)
    assert (made.earlier is None) == (not gaps.earlier)


@pytest.mark.parametrize("storage", ["features", "features_int8", "tokens", "online"])
def test_every_storage_serves_what_a_network_reads(storage, tmp_path):
    config = tiny(tmp_path, f"data/storage={storage}")
    data = build(config.data)
    data.serve(HistoryShortcut(48, num_heads=2, max_gap=2))
    sampler = Sampler(build(config.base), build(config.sampling))
    data.attach(sampler, config.seed)
    data.storage.prepare(sampler, data, config.seed, 10)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert set(batch.gaps.tolist()) == {1, 2}
    assert batch.earlier.shape[0] == batch.spans.shape[0] == 8
    near, far = data.val_dataloader()
    assert [set(b.gaps.tolist()) for b in (next(iter(near)), next(iter(far)))] == [{1}, {2}]
    assert (sum(len(b.steps) for b in near), sum(len(b.steps) for b in far)) == (4 * 2 * 5, 4 * 2 * 4)


def test_the_loader_of_a_chained_network_is_one_of_all_pairs(tmp_path):
    collected(config := tiny(tmp_path))
    data = build(config.data)
    data.setup()
    assert sum(len(batch.steps) for batch in data.val_dataloader()) == 4 * 2 * 5
    assert data.gaps is None


def test_a_replayed_step_more_is_counted(tmp_path):
    config = tiny(tmp_path)
    data, sampler = build(config.data), Sampler(build(config.base), build(config.sampling))
    steps = []
    for network in (None, AnchoredShortcut(48, num_heads=2), HistoryShortcut(48, num_heads=2)):
        data.serve(network or torch.nn.Linear(1, 1))
        steps.append(measure_work(sampler, data, 1).steps_a_pair)
    assert steps == [2, 2, 3]


def test_a_storage_that_makes_no_gaps_is_refused(tmp_path):
    collected(config := tiny(tmp_path))
    data = build(config.data)
    store = data.store()
    own = SimpleNamespace(name="own", split=lambda data: (PairDataset(store, 0, 8), PairDataset(store, 8, 12)))
    data.storage = own
    data.setup()
    data.serve(AnchoredShortcut(48, num_heads=2))
    with pytest.raises(UserError, match=naming("data/storage=own", "neighbouring", "full steps")):
        data.setup()


@pytest.mark.parametrize("gaps", [Gaps(3), BOTH])
def test_halves_that_are_together_are_as_far_apart(store, gaps):
    data = PairDataset(store, together=True, gaps=gaps)
    batch = data.__getitems__(drawn(data)[:7])
    for name in ("images", "steps", "gaps", "spans", "masked", "new"):
        value = getattr(batch, name)
        if value is not None:
            assert torch.equal(value[:7], value[7:]), name
    assert batch.halves.tolist() == [0] * 7 + [1] * 7
    for i, (image, half, s) in enumerate(zip(batch.images, batch.halves, batch.steps, strict=True)):
        made, rows = synthetic([int(image)], rows=10 if image < 4 else 12), 10 if image < 4 else 12
        assert torch.equal(batch.target[i, :rows], made.features[0, half, s + batch.gaps[i]])
    assert len(data.of_gap(2)) == 6 * (N - 2)
