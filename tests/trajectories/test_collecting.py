"""collect(): a trajectory depends on (seed, image) alone, and a kill costs at most one shard."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_parts import collected, contents, naming, same_tensors, tiny

import migm.bases.inputs
import migm.trajectories.collect
from migm.config.building import build
from migm.config.roots import CollectConfig
from migm.runtime.errors import UserError
from migm.runtime.writing import LOCK
from migm.sampling.sampler import Sampler
from migm.trajectories.estimate import TrainingWork
from migm.trajectories.store import MANIFEST, Store


def config_for(output: Path, *overrides: str) -> CollectConfig:
    return tiny(output, *overrides, command="collect", root=CollectConfig)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Store:
    """Twelve images in shards of five, never interrupted."""
    return collected(config_for(tmp_path_factory.mktemp("whole")))


def test_a_trajectory_holds_what_the_sampler_did(whole, tmp_path):
    config, data = config_for(tmp_path), contents(whole)
    sampler = Sampler(build(config.base), build(config.sampling))
    assert data["features"].shape == (12, 2, 6, 17, 48)
    assert data["conditions"].tolist() == [[[i % 10], [10]] for i in range(12)]  # 10: no class
    assert data["images"].tolist() == list(range(12))
    label, image = data["conditions"][7:8, 0, 0].long(), data["images"][7:8]
    alone = sampler.tokens(label, sampler.noise(config.seed, image))
    assert torch.equal(data["tokens"][7:8].long(), alone)
    counts = [(data["order"] == s).sum(1).tolist() for s in range(6)]
    assert counts == [[n] * 12 for n in sampler.sampling.schedule.counts(16, 6)]


@pytest.mark.parametrize(("batch", "shard"), [(1, 5), (12, 12), (2, 3), (7, 4)])
def test_batches_and_shards_do_not_change_the_trajectories(whole, tmp_path, batch, shard):
    other = collected(config_for(tmp_path, f"data.collect_batch_size={batch}", f"data.shard_images={shard}"))
    assert len(other.shards) == -(-12 // shard)
    for name, tensor in contents(whole).items():
        assert torch.equal(contents(other)[name], tensor), name


def test_growing_a_store_keeps_its_beginning(whole, tmp_path):
    collected(config_for(tmp_path, "data.num_images=7"))
    grown = collected(config_for(tmp_path, "data.num_images=12"))
    for name, tensor in contents(whole).items():
        assert torch.equal(contents(grown)[name], tensor), name


def test_another_seed_gives_other_trajectories(whole, tmp_path):
    # The seed also makes the tiny base, so the base of seed 0 samples with seed 1 here.
    config = config_for(tmp_path)
    sampler = Sampler(build(config.base), build(config.sampling))
    other = migm.trajectories.collect.collect(sampler, build(config.data), 1)
    assert other.header["base"] == whole.header["base"]
    assert not torch.equal(contents(other)["tokens"], contents(whole)["tokens"])


def test_the_header_describes_the_run(whole, tmp_path):
    config = config_for(tmp_path)
    header = whole.header
    assert (header["base"], header["seed"], header["num_steps"]) == (build(config.base).fingerprint(), 0, 6)
    assert (header["copies"], header["dtype"], header["storage"]) == (2, "bfloat16", "features")
    assert header["inputs"] == "10 classes"
    assert header["sampling"] == build(config.sampling).identity
    assert "num_full_steps" not in header["sampling"]


def test_the_announced_size_is_that_of_the_features(whole):
    copies, n, rows, channels = contents(whole)["features"].shape[1:]
    size = sum(whole.open(i)["features"].nbytes for i in range(len(whole.shards)))
    work = TrainingWork(len(whole), n, copies, rows, channels, 0, 0, 0, 0, 0.0)
    assert work.feature_bytes(len(whole), torch.bfloat16) == size


def _copy(whole: Store, output: Path) -> Path:
    folder = Path(config_for(output).data["folder"])
    shutil.copytree(whole.folder, folder)
    return folder


def _kill(folder: Path, moment: str) -> int:
    """Leave what a kill at that moment leaves; returns how many shards survive."""
    manifest = folder / "manifest.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    shards = sorted(folder.glob("*.safetensors"))
    if moment == "writing the third shard":
        Path(f"{shards[2]}.tmp").mkdir()
        shards[2].rename(f"{shards[2]}.tmp/{shards[2].name}")
        os.truncate(f"{shards[2]}.tmp/{shards[2].name}", 100)
        manifest.write_text("".join(lines[:3]))
        return 2
    if moment == "listing the third shard":
        manifest.write_text("".join(lines)[:-20])
        return 2
    if moment == "before listing the second shard":
        shards[2].unlink()
        manifest.write_text("".join(lines[:2]))
        return 1
    for shard in shards:
        shard.unlink()
    manifest.write_text("" if moment == "creating the manifest" else lines[0][:30])
    return 0


MOMENTS = [
    "writing the third shard",
    "listing the third shard",
    "before listing the second shard",
    "creating the manifest",
    "writing the header",
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_after_a_kill_only_what_is_missing_is_collected_again(whole, tmp_path, moment, monkeypatch):
    folder = _copy(whole, tmp_path)
    survived = _kill(folder, moment)
    recorded = []
    original = migm.trajectories.collect.record

    def spy(sampler, images, *rest):
        recorded.extend(images.tolist())
        return original(sampler, images, *rest)

    monkeypatch.setattr(migm.trajectories.collect, "record", spy)
    again = collected(config_for(tmp_path))
    assert recorded == list(range(5 * survived, 12))
    again.verify()
    assert not list(folder.glob("*.tmp"))
    assert [(shard["file"], shard["count"]) for shard in Store(folder, whole.header).shards] == [
        (shard["file"], shard["count"]) for shard in whole.shards
    ]
    # Tensors, not bytes: safetensors writes its metadata in random order.
    for shard in whole.shards:
        assert same_tensors(folder / shard["file"], whole.folder / shard["file"])


def _as_of_version_0_1(folder: Path, sampling: dict[str, Any]) -> None:
    """Describe a store's sampling as earlier versions did: by its config."""
    manifest = folder / "manifest.jsonl"
    first, *lines = manifest.read_text().splitlines(keepends=True)
    known = {key: value for key, value in sampling.items() if key != "num_full_steps"}
    manifest.write_text(json.dumps({**json.loads(first), "sampling": known}) + "\n" + "".join(lines))


def test_a_store_of_an_earlier_version_goes_on(whole, tmp_path):
    folder, config = _copy(whole, tmp_path), config_for(tmp_path)
    (folder / whole.shards[-1]["file"]).unlink()
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-1]))
    _as_of_version_0_1(folder, config.sampling)
    again = collected(config)
    assert len(again) == 12
    for name, tensor in contents(whole).items():
        assert torch.equal(contents(again)[name], tensor), name


def test_a_store_of_an_earlier_version_and_another_sampling_is_refused(whole, tmp_path):
    other = "sampling.select.temperature=3"
    _as_of_version_0_1(_copy(whole, tmp_path), config_for(tmp_path, other).sampling)
    with pytest.raises(UserError, match=naming("data.folder", "sampling=", "temperature=3")):
        collected(config_for(tmp_path))
    assert len(collected(config_for(tmp_path, other))) == 12


def test_a_complete_store_is_left_alone(whole, tmp_path):
    folder = _copy(whole, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    collected(config_for(tmp_path))
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_locks_of_a_command_that_was_killed_while_it_listed_the_last_shard_go(whole, tmp_path):
    folder = _copy(whole, tmp_path)
    before = {path.name for path in folder.iterdir()}
    for lock in (LOCK, f".{MANIFEST}.lock"):
        (folder / lock).touch()
    collected(config_for(tmp_path))
    assert {path.name for path in folder.iterdir()} == before


def test_the_number_of_full_steps_does_not_shape_trajectories(whole, tmp_path):
    _copy(whole, tmp_path)
    assert len(collected(config_for(tmp_path, "sampling.num_full_steps=3"))) == 12


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=1", "base"),
        ("sampling.select.temperature=3", "sampling"),
        ("sampling.guidance.guidance_scale=1.5", "sampling"),
        ("base.dtype=float32", "base"),
        ("data.inputs={_target_: migm.bases.inputs.Classes, num_classes: 5}", "inputs"),
    ],
)
def test_a_store_of_another_run_is_refused_naming_what_differs(whole, tmp_path, override, key):
    folder = _copy(whole, tmp_path)  # by its name, since the default one carries the seed
    with pytest.raises(UserError, match=naming("data.folder", f"{key}=")):
        collected(config_for(tmp_path, override, f"data.folder={folder}"))
