"""Online: images are made while a shortcut trains on them, and a resumed training sees the same ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_parts import naming, same_tensors, tiny

import migm.collect
from migm.bases.inputs import Classes
from migm.config.building import build
from migm.runtime.errors import UserError
from migm.runtime.resources import readable
from migm.sampling.sampler import Sampler
from migm.training.module import ShortcutModule
from migm.training.run import Training
from migm.trajectories.collect import announce_online
from migm.trajectories.datamodule import TrajectoryData
from migm.trajectories.dataset import Pairs
from migm.trajectories.online import Online, OnlineLoader
from migm.trajectories.record import record

SHARD = 2 * 2 * 6 * 17 * 48 * 2  # bytes of two images: halves, steps, rows, channels, bfloat16


class Made:
    """Stands for a shard that was generated: `size` pairs, told apart by shard and index."""

    def __init__(self, shard: int, size: int):
        self.shard, self.size = shard, size

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, indices: list[int]) -> list[tuple[int, int]]:
        return [(self.shard, i) for i in indices]


def online(made: list[int], reuse: int = 1, seed: int = 0) -> OnlineLoader:
    """Three shards an epoch, of seven pairs in batches of three; `made` notes the shards made."""

    def make(shard: int) -> Any:
        made.append(shard)
        return Made(shard, 7)

    return OnlineLoader(make, 7, 3, reuse, batch_size=3, seed=seed)


def test_every_shard_is_used_as_often_as_asked_each_time_in_another_order():
    made: list[int] = []
    loader = online(made, reuse=2)
    epochs = [list(loader), list(loader)]
    assert [len(epoch) for epoch in epochs] == [12, 12] == [len(loader)] * 2
    assert made == [0, 1, 2, 3, 4, 5]
    batches = [batch for epoch in epochs for batch in epoch]
    assert {len(batch) for batch in batches} == {3}
    uses = [[*a, *b] for a, b in zip(batches[::2], batches[1::2], strict=True)]
    for number, use in enumerate(uses):
        assert {shard for shard, _ in use} == {number // 2}
        assert len({index for _, index in use}) == 6
    assert [index for _, index in uses[0]] != [index for _, index in uses[1]] != [index for _, index in uses[2]]


def test_the_order_of_an_online_loader_depends_on_the_seed_alone():
    torch.manual_seed(0)
    first = list(online([]))
    torch.manual_seed(1)
    assert list(online([])) == first != list(online([], seed=1))


@pytest.mark.parametrize("reuse", [1, 2])
@pytest.mark.parametrize("taken", [0, 1, 2, 3, 5, 6, 11, 12])
def test_an_online_loader_resumes_exactly_and_makes_its_shard_again(reuse, taken):
    whole = online([], reuse)
    wanted = [batch for _ in range(4) for batch in whole]
    first, found = online([], reuse), []
    while len(found) < taken:
        for batch in first:
            found.append(batch)
            if len(found) == taken:
                break
    made: list[int] = []
    second = online(made, reuse)
    second.load_state_dict(first.state_dict())
    rest = list(second)
    assert found + rest == wanted[: len(found) + len(rest)]
    assert len(rest) == len(second) - taken % len(second)
    assert made[0] == taken // 2 // reuse


def data_for(base, sampling, rank: int = 0, world: int = 1, **changes: Any) -> TrajectoryData:
    parts = {"num_images": 9, "num_val_images": 3, "batch_size": 4, "shard_images": 2, "collect_batch_size": 2}
    data = TrajectoryData("nowhere", Classes(10), storage=Online(), **{**parts, **changes})
    data.attach(Sampler(base, sampling), 0)
    data._rank = lambda: (rank, world)  # type: ignore[method-assign]
    data.setup()
    return data


def test_every_process_and_shard_has_images_of_its_own_of_the_training_inputs(tiny_base, make_sampling):
    seen, shown = [], set()
    for rank in range(2):
        loader = data_for(tiny_base, make_sampling(), rank, 2).train_dataloader()
        assert isinstance(loader, OnlineLoader)
        assert len(loader) == 1 * (2 * 2 * 5 // 4)  # six images an epoch: one shard of two for each process
        for shard in range(3):
            tensors = loader.make(shard).store.open(0)
            seen += tensors["images"].tolist()
            shown |= set(tensors["conditions"][:, 0, 0].tolist())
            assert tensors["features"].dtype == torch.bfloat16
    assert sorted(seen) == list(range(9, 21))
    assert shown == set(range(6))  # never those that validate: 6, 7, 8


def test_the_validating_images_are_those_of_a_store(tiny_base, make_sampling):
    data = data_for(tiny_base, make_sampling())
    assert data.val is not None
    stored = record(Sampler(tiny_base, make_sampling()), torch.arange(9), 0, Classes(10), 9, None)
    tensors = data.val.store.open(0)
    for name in ("tokens", "order", "conditions", "images"):
        assert torch.equal(tensors[name], stored.tensors()[name][6:]), name
    assert sum(len(batch.steps) for batch in data.val_dataloader()) == 3 * 2 * 5
    before = data.val
    data.setup()
    assert data.val is before


def test_workers_are_refused_where_the_base_runs():
    with pytest.raises(UserError, match=naming("data.num_workers=2", "data/storage=online")):
        TrajectoryData("nowhere", Classes(10), 9, 3, 4, storage=Online(), num_workers=2)


def test_a_shard_that_fills_no_batch_is_refused(tiny_base, make_sampling):
    with pytest.raises(UserError, match=naming("data.batch_size=24", "20 pairs", "data.shard_images")):
        data_for(tiny_base, make_sampling(), batch_size=24).train_dataloader()


class Killed(Exception):
    """Stands for a kill."""


ONLINE = ["data/storage=online", "data.shard_images=2"]


def train(output: Path, *overrides: str) -> float:
    """One training as `migm.train` does it, of 12 steps; returns the validation error."""
    config = tiny(output, "trainer.max_steps=12", "lr_schedule.warmup_steps=2", *overrides)
    base, data = build(config.base), build(config.data)
    data.attach(Sampler(base, build(config.sampling)), config.seed)
    return Training(config, base).run(data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, list[Pairs]]:
    """An online training that nothing interrupted: eight batches an epoch, two a shard."""
    output, seen, step = tmp_path_factory.mktemp("whole"), [], ShortcutModule.training_step

    def watching(self, batch, i):
        seen.append(batch)
        return step(self, batch, i)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShortcutModule, "training_step", watching)
        train(output, *ONLINE, "callbacks.checkpoint.every_n_train_steps=100")
    return output / "tiny_shortcut", seen


def test_an_online_training_stores_nothing_and_sees_new_images(whole):
    folder, seen = whole
    assert not list(folder.parent.rglob("manifest.jsonl"))
    assert len(seen) == 12
    images = [set(batch.images.tolist()) for batch in seen]
    assert set.union(*images) == set(range(12, 24))
    assert [a | b for a, b in zip(images[::2], images[1::2], strict=True)] == [{i, i + 1} for i in range(12, 24, 2)]


@pytest.mark.parametrize(("saved", "killed"), [(5, 6), (8, 9)], ids=["in a shard", "after an epoch"])
def test_a_resumed_online_training_equals_an_uninterrupted_one(whole, tmp_path, monkeypatch, saved, killed):
    step = ShortcutModule.training_step

    def dying(self, batch, i):
        if self.global_step == killed:
            raise Killed
        return step(self, batch, i)

    every = f"callbacks.checkpoint.every_n_train_steps={saved}"
    with monkeypatch.context() as patch:
        patch.setattr(ShortcutModule, "training_step", dying)
        with pytest.raises(Killed):
            train(tmp_path, *ONLINE, every)
    train(tmp_path, *ONLINE, every)
    assert same_tensors(tmp_path / "tiny_shortcut" / "shortcut.safetensors", whole[0] / "shortcut.safetensors")


@pytest.fixture
def call(call_main, tmp_path) -> Callable[..., tuple[int, str, str]]:
    """`python -m migm.collect` on the tiny experiment, inside this process."""

    def run(*more: str) -> tuple[int, str, str]:
        shared = ["+experiment=tiny_shortcut", f"paths.output_dir={tmp_path}", "device=cpu"]
        code, out, err = call_main(migm.collect.main, *shared, *more)
        return code, " ".join(out.split()), err

    return run


def test_online_there_is_nothing_to_collect_and_the_command_says_so(call, tmp_path):
    code, out, err = call("data/storage=online")
    assert code == 0, err
    assert "nothing to collect; 5 images at a time" in out
    assert readable(SHARD // 2 * 5) in out
    assert not list(tmp_path.rglob("manifest.jsonl"))


@pytest.mark.parametrize("key", ["import_from", "export_to"])
def test_online_there_is_no_store_for_tars(call, tmp_path, key):
    code, _, err = call("data/storage=online", f"{key}={tmp_path}")
    assert code == 2
    assert err.count("\n") == 1
    assert "data/storage=online" in err


def test_the_announcement_counts_the_steps_of_a_shard(tiny_base, make_sampling, capsys):
    announce_online(Sampler(tiny_base, make_sampling()), data_for(tiny_base, make_sampling()), 100)
    said = " ".join(capsys.readouterr().out.split())
    assert f"{readable(SHARD)} of memory and about 0:00:0" in said
    assert said.count("recommended") == 1
