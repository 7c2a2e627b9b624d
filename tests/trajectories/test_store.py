"""migm-traj/1 on disk: nothing is lost, nothing damaged or foreign is read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_parts import contents, naming, synthetic

from migm.config.earlier import sampling_identity
from migm.runtime.errors import UserError
from migm.trajectories.estimate import TrainingWork
from migm.trajectories.store import Store

HEADER = {
    "base": "0123456789ab",
    "storage": "features",
    "dtype": "bfloat16",
    "copies": 2,
    "num_steps": 4,
    "seed": 0,
    "sampling": "Sampling(draw=GumbelMax())",
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Seven images in shards of three, three and one."""
    store = Store(tmp_path / "store", HEADER)
    for images in ((0, 1, 2), (3, 4, 5), (6,)):
        store.append(synthetic(images))
    return store


@pytest.mark.parametrize("header", [HEADER, None], ids=["same header", "any header"])
def test_what_was_written_is_read_back_bit_for_bit(store, header):
    again = Store(store.folder, header)
    again.verify()
    assert len(again) == 7
    assert again.header == {"schema": "migm-traj/1", **HEADER}
    assert [shard["count"] for shard in again.shards] == [3, 3, 1]
    found, expected = contents(again), synthetic(range(7)).tensors()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def _damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[:-10])
    else:
        data[-3] ^= 0x10
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
def test_a_damaged_shard_is_refused_by_name(store, how):
    _damage(store.folder / "000001.safetensors", how)
    with pytest.raises(UserError, match=naming("data.folder", "000001.safetensors")):
        Store(store.folder).verify()


def test_without_contents_verify_compares_sizes_only(store):
    _damage(store.folder / "000001.safetensors", "flipped")
    Store(store.folder).verify(contents=False)
    _damage(store.folder / "000001.safetensors", "truncated")
    with pytest.raises(UserError, match=naming("000001.safetensors")):
        Store(store.folder).verify(contents=False)


@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_reading_an_unverified_damaged_shard_names_it(store, how):
    _damage(store.folder / "000001.safetensors", how)
    with pytest.raises(UserError, match=naming("data.folder", "000001.safetensors")):
        Store(store.folder).open(1)


def test_a_foreign_schema_is_refused_with_both_names(store):
    lines = store.manifest.read_text().splitlines(keepends=True)
    lines[0] = json.dumps({**json.loads(lines[0]), "schema": "migm-traj/99"}) + "\n"
    store.manifest.write_text("".join(lines))
    with pytest.raises(UserError, match=naming("migm-traj/99", "migm-traj/1")):
        Store(store.folder)


def test_a_damaged_manifest_is_refused_by_name(store):
    lines = store.manifest.read_text().splitlines(keepends=True)
    store.manifest.write_text(lines[0] + "{broken\n" + "".join(lines[1:]))
    with pytest.raises(UserError, match=naming("manifest.jsonl")):
        Store(store.folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("base", "ffffffffffff"),
        ("seed", 1),
        ("dtype", "float32"),
        ("copies", 1),
        ("num_steps", 5),
        ("storage", "tokens"),
        ("sampling", "Sampling(draw=GumbelMax(dtype=bfloat16))"),
    ],
)
def test_a_store_of_another_origin_is_refused_naming_the_key(store, key, value):
    with pytest.raises(UserError, match=naming("data.folder", f"{key}=")):
        Store(store.folder, {**HEADER, key: value})


def test_a_refused_store_is_left_as_it_was(store):
    before = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    with pytest.raises(UserError):
        Store(store.folder, {**HEADER, "seed": 1})
    assert {path.name: path.read_bytes() for path in store.folder.iterdir()} == before


def test_an_empty_folder_without_header_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=naming("data.folder", "migm.collect")):
        Store(tmp_path)


def test_a_new_store_writes_nothing_before_its_first_shard(tmp_path):
    assert len(Store(tmp_path / "new", HEADER)) == 0
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("images", "dtype"), [(1, torch.bfloat16), (6, torch.bfloat16), (6, torch.float32)])
def test_the_size_estimate_is_that_of_the_features(images, dtype):
    features = synthetic(range(images)).features.to(dtype)
    b, copies, n, rows, channels = features.shape
    assert TrainingWork(b, n, copies, rows, channels, 0, 0, 0, 0, 0.0).feature_bytes(b, dtype) == features.nbytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_every_tensor_is_what_safetensors_reads(tmp_path, dtype):
    made = synthetic(range(3))
    store = Store(tmp_path, HEADER)
    store.append(replace(made, features=made.features.to(dtype)))
    expected, found = load_file(tmp_path / "000000.safetensors"), store.open(0)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].tolist()) == (tensor.dtype, tensor.tolist()), name


@pytest.mark.parametrize(
    "sampling",
    [
        {"a": [1]},
        {"_target_": "os.system", "command": "touch ran"},
        {"_target_": "migm.sampling.loop.start"},
        {
            "_target_": "migm.sampling.loop.Sampling",
            "schedule": {"_target_": "subprocess.run", "args": ["touch", "ran"]},
        },
        {"_target_": "migm.sampling.nowhere.Sampling"},
        {"_target_": ["x"]},
    ],
)
def test_nothing_that_a_manifest_names_is_run(sampling, tmp_path, monkeypatch):
    """Stores of an earlier version hold a config, which a stranger may have written."""
    monkeypatch.chdir(tmp_path)
    assert sampling_identity(sampling) == json.dumps(sampling, sort_keys=True)
    assert list(tmp_path.iterdir()) == []
