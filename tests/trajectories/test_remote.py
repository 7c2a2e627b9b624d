"""Stores behind an S3 server: the same pairs as on disk, through a cache that stays small and whole."""

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.registry import _registry
from moto.server import ThreadedMotoServer
from tiny_parts import contents, naming, same_tensors, synthetic

from migm import collect, train
from migm.bases.inputs import Classes
from migm.runtime.errors import UserError
from migm.trajectories.datamodule import TrajectoryData
from migm.trajectories.dataset import PairDataset, Pairs
from migm.trajectories.loader import StatefulLoader
from migm.trajectories.remote import Place, Remote, publish
from migm.trajectories.source import Url
from migm.trajectories.store import Store

HEADER = {"base": "x", "storage": "features", "copies": 2, "num_steps": 4, "seed": 0}
BUCKET = "trajectories"


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[fsspec.AbstractFileSystem]:
    """A file system on an S3 server of this process, which the environment points to."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    started = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        system = fsspec.filesystem("s3")
        system.mkdir(BUCKET)
        yield system
    started.stop()


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Store:
    """Sixteen images in eight shards."""
    store = Store(tmp_path_factory.mktemp("local"), HEADER)
    for first in range(0, 16, 2):
        store.append(synthetic([first, first + 1]))
    return store


@pytest.fixture(scope="module")
def url(local: Store) -> str:
    """Where those are published."""
    address = f"s3://{BUCKET}/whole"
    assert list(publish(local, address)) == [2] * 8
    return address


@pytest.fixture
def remote(url: str, tmp_path: Path) -> Callable[..., Store]:
    """The published store through a cache of this test."""

    def make(shards: int = 100, address: str = url) -> Store:
        return Store(address, None, Remote(address, tmp_path / "cache", shards * size_of_a_shard(url)))

    return make


def size_of_a_shard(url: str) -> int:
    return max(Place(url, "data.folder").sizes().values())


def cached(folder: Path, pattern: str = "*.safetensors") -> set[str]:
    return {path.name for path in (folder / "cache").glob(pattern)}


def used(cache: Path) -> int:
    """Bytes of a folder's files, of which workers may remove some at the same time."""
    size = 0
    for folder, _, names in os.walk(cache):
        for name in names:
            with suppress(FileNotFoundError):
                size += os.stat(os.path.join(folder, name)).st_size
    return size


@pytest.fixture
def transfers(monkeypatch, tmp_path) -> Callable[[str], list[str]]:
    """What all processes downloaded (`get`) or uploaded (`put`) since the last call, by name."""
    log = tmp_path / "transfers"
    log.touch()

    def noting(kind: str, plain: Callable[..., None]) -> Callable[..., None]:
        def noted(self: Place, *args: Any) -> None:
            with log.open("a") as file:
                file.write(f"{kind} {Path(args[0]).name}\n")
            plain(self, *args)

        return noted

    for kind in ("get", "put"):
        monkeypatch.setattr(Place, kind, noting(kind, getattr(Place, kind)))

    def read(kind: str) -> list[str]:
        lines = log.read_text().splitlines()
        log.write_text("")
        return [line.split()[1] for line in lines if line.startswith(kind)]

    return read


def same(a: Pairs, b: Pairs) -> bool:
    """Whether all fields are equal; None stands for what pairs of consecutive steps do not have."""
    assert [x is None for x in a] == [y is None for y in b]
    found = ((x, y) for x, y in zip(a, b, strict=True) if x is not None)
    return all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in found)


def in_a_process(job: Callable[..., Any], *args: Any) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=job, args=args)
    process.start()
    return process


def test_what_was_published_is_the_store(remote, local, transfers):
    store = remote()
    store.verify()
    assert transfers("get") == []
    assert (store.header, store.shards) == (local.header, local.shards)
    found, expected = contents(store), contents(local)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    contents(store)
    assert sorted(transfers("get")) == [shard["file"] for shard in local.shards]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pairs_of_every_rank_are_those_of_the_local_store(remote, local, num_workers):
    for rank in range(2):
        here, there = (
            StatefulLoader(PairDataset(store), 8, seed=3, rank=rank, world_size=2, num_workers=workers)
            for store, workers in ((local, 0), (remote(), num_workers))
        )
        pairs = list(zip(here, there, strict=True))
        assert len(pairs) == 6
        assert all(same(a, b) for a, b in pairs)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_cache_stays_within_its_limit_and_fetches_again(
    remote, local, transfers, tmp_path, monkeypatch, num_workers
):
    monkeypatch.setattr(PairDataset, "window", 1)
    limit = 4 * size_of_a_shard(remote().name)
    here, there = (
        StatefulLoader(PairDataset(local), 5, 0),
        StatefulLoader(PairDataset(remote(4)), 5, 0, 0, 1, num_workers),
    )
    for _ in range(2):
        for a, b in zip(here, there, strict=True):
            assert same(a, b)
            assert used(tmp_path / "cache") <= limit
    fetched = transfers("get")
    assert set(fetched) == {shard["file"] for shard in local.shards}
    # Of the second epoch those that the first one left are there; a worker that lags may find one gone again.
    assert 8 + 4 <= len(fetched) <= 8 + 8 + 4 * num_workers


def test_the_longest_unopened_shard_makes_room(remote, tmp_path):
    store = remote(3)
    for index in (0, 1, 2, 0, 3):
        store.open(index)
    assert cached(tmp_path) == {f"{store.shards[i]['sha256']}.safetensors" for i in (0, 2, 3)}


def test_a_window_keeps_its_shards_open_and_no_others(remote, monkeypatch):
    monkeypatch.setattr(PairDataset, "window", 3)
    data = PairDataset(remote())
    for image in (0, 2, 4, 0, 6, 8):
        data.__getitems__([image * 6])
    assert list(data._open) == [0, 3, 4]


def test_an_open_shard_is_not_evicted_by_another_process(remote, local, tmp_path):
    held, expected = remote().open(0), local.open(0)["features"].clone()
    name = f"{local.shards[0]['sha256']}.safetensors"

    def others(*indices: int) -> None:
        for index in indices:
            remote(1).open(index)

    def finished(process: multiprocessing.Process) -> set[str]:
        process.join()
        assert process.exitcode == 0
        return cached(tmp_path)

    # The limit is one shard, which is taken: nothing else can go.
    assert finished(in_a_process(others, 1, 2)) == {name, f"{local.shards[2]['sha256']}.safetensors"}
    assert torch.equal(held["features"], expected)
    del held
    assert finished(in_a_process(others, 3)) == {f"{local.shards[3]['sha256']}.safetensors"}


def test_a_mapped_shard_outlives_its_file(remote, local, tmp_path):
    tensors = remote().open(0)
    for path in (tmp_path / "cache").glob("*.safetensors"):
        path.unlink()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in local.open(0).items())


def test_processes_share_a_cache_and_fetch_once(remote, local, transfers):
    context = multiprocessing.get_context("fork")
    together = context.Barrier(3)

    def read() -> None:
        store = remote()
        together.wait()
        for index in range(8):
            assert torch.equal(store.open(index)["features"], local.open(index)["features"])

    processes = [in_a_process(read) for _ in range(3)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(transfers("get")) == [shard["file"] for shard in local.shards]


def test_a_killed_download_leaves_nothing_that_counts(remote, local, tmp_path, monkeypatch):
    plain = Place.get

    def killed_halfway(self: Place, name: str, path: Path) -> None:
        plain(self, name, path)
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    def download() -> None:
        monkeypatch.setattr(Place, "get", killed_halfway)
        remote().open(0)

    process = in_a_process(download)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (len(cached(tmp_path, "*.tmp")), cached(tmp_path)) == (1, set())
    assert torch.equal(remote().open(1)["features"], local.open(1)["features"])
    assert (cached(tmp_path, "*.tmp"), len(cached(tmp_path))) == (set(), 1)


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
def test_a_damaged_object_is_refused_by_name(server, local, remote, tmp_path, how):
    address = f"s3://{BUCKET}/{how}"
    list(publish(local, address))
    name = f"{address}/000001.safetensors"
    data = bytearray(server.cat_file(name))
    if how == "missing":
        server.rm_file(name)
    elif how == "truncated":
        server.pipe_file(name, bytes(data[:-10]))
    else:
        data[-3] ^= 0x10
        server.pipe_file(name, bytes(data))
    store = remote(address=address)
    with pytest.raises(UserError, match=naming("data.folder", name)):
        store.open(1) if how == "flipped" else store.verify()
    with pytest.raises(UserError, match=naming("data.folder", address)):
        store.open(1)
    assert (cached(tmp_path), cached(tmp_path, "*.tmp")) == (set(), set())


@pytest.mark.parametrize(("how", "seen_by"), [("flipped", "verify"), ("truncated", "open")])
def test_a_damaged_copy_in_the_cache_is_fetched_again(remote, local, tmp_path, how, seen_by):
    remote().open(2)
    (path,) = (tmp_path / "cache").glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x10
    path.write_bytes(data if how == "flipped" else data[:-10])
    store = remote()
    if seen_by == "verify":
        with pytest.warns(UserWarning, match="000002.safetensors will be fetched again"):
            store.verify()
    assert torch.equal(store.open(2)["features"], local.open(2)["features"])


def test_a_store_that_changed_is_not_read_from_old_copies(local, remote, tmp_path):
    address = f"file://{tmp_path}/there"
    list(publish(local, address))
    contents(remote(address=address))
    other = Store(tmp_path / "other", HEADER)
    for first in range(20, 36, 2):
        other.append(synthetic([first, first + 1]))
    for path in other.folder.iterdir():
        path.replace(tmp_path / "there" / path.name)
    assert contents(remote(address=address))["images"].tolist() == list(range(20, 36))


def data_at(folder: str, tmp_path: Path, **changes: Any) -> TrajectoryData:
    source = Url(tmp_path / "cache", **changes)
    return TrajectoryData(folder, Classes(10), num_images=16, num_val_images=2, batch_size=4, source=source)


def test_a_cache_that_cannot_hold_what_is_read_together_is_refused(url, local, tmp_path, monkeypatch):
    monkeypatch.setattr(PairDataset, "window", 2)
    sizes = sum(sorted(shard["bytes"] for shard in local.shards)[-6:])
    data_at(url, tmp_path, cache_bytes=sizes).setup()
    with pytest.raises(UserError, match=naming(f"data.cache_bytes={sizes - 1}", url, "6 shards", sizes)):
        data_at(url, tmp_path, cache_bytes=sizes - 1).setup()


def test_publishing_goes_on_where_it_stopped(local, remote, transfers, server):
    address = f"s3://{BUCKET}/halves"
    stopped = publish(local, address)
    assert [next(stopped), next(stopped), next(stopped)] == [2, 2, 2]
    stopped.close()
    assert len(remote(address=address)) == 6  # what is there is a store
    server.pipe_file(f"{address}/000000.safetensors", b"short")
    transfers("put")
    assert list(publish(local, address)) == [2] * 8
    assert transfers("put") == [f"{number:06d}.safetensors" for number in (0, 3, 4, 5, 6, 7)]
    assert torch.equal(contents(remote(address=address))["images"], torch.arange(16))
    list(publish(local, address))
    assert transfers("put") == []


def test_another_store_is_not_written_over(url, tmp_path):
    other = Store(tmp_path / "other", {**HEADER, "seed": 1})
    other.append(synthetic([0]))
    with pytest.raises(UserError, match=naming(f"publish_to={url}", "other trajectories")):
        list(publish(other, url))


def test_damage_is_not_published(local, tmp_path):
    store = Store(tmp_path / "store", HEADER)
    store.append(synthetic([0]))
    os.truncate(tmp_path / "store" / "000000.safetensors", 100)
    with pytest.raises(UserError, match=naming("000000.safetensors", "has 100 of")):
        list(publish(store, f"s3://{BUCKET}/damaged"))


def test_a_remote_store_is_read_only(remote, url):
    with pytest.raises(UserError, match=naming(f"data.folder={url}", "read only")):
        remote().append(synthetic([16]))
    with pytest.raises(UserError, match=naming("publish_to", url)):
        list(publish(remote(), "s3://elsewhere/x"))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nowhere://x/y", ["data.folder=nowhere://x/y", "nowhere"]),
        (f"s3://{BUCKET}/empty", ["empty", "manifest.jsonl"]),
    ],
)
def test_what_cannot_be_reached_is_said_in_a_line(tmp_path, address, words):
    with pytest.raises((UserError, FileNotFoundError), match=naming(*words)):
        data_at(address, tmp_path).setup()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3")  # so that it is imported again
    with pytest.raises(UserError, match=naming(f"data.folder=s3://{BUCKET}/x", "s3fs", 'pip install -e ".[remote]"')):
        data_at(f"s3://{BUCKET}/x", tmp_path).setup()


def test_a_training_from_s3_is_that_from_disk(tmp_path, call_main):
    address = f"s3://{BUCKET}/tiny"
    shared = ["+experiment=tiny_shortcut", "device=cpu", f"paths.output_dir={tmp_path}"]
    code, out, err = call_main(collect.main, *shared, f"publish_to={address}")
    assert code == 0, err
    assert f"12 trajectories in {address}" in " ".join(out.split())
    steps = ["trainer.max_steps=12", "lr_schedule.warmup_steps=2", "evaluate=false", "trainer.precision=32-true"]
    for name, more in {"disk": [], "s3": ["data/source=url", f"data.folder={address}"]}.items():
        code, _, err = call_main(train.main, *shared, *steps, f"name={name}", *more)
        assert code == 0, err
    assert same_tensors(*(tmp_path / name / "shortcut.safetensors" for name in ("disk", "s3")))
    assert len(cached(tmp_path)) == 3
    more = ["name=more", f"data.folder={address}", "data.num_images=13"]
    code, _, err = call_main(train.main, *shared, *steps, "data/source=url", *more)
    assert code == 2
    assert f"data.folder={address} holds 12 of data.num_images=13" in err
    for folder, words in {address: "data/source=url", f"{tmp_path}/x": "no URL"}.items():
        source = [] if folder == address else ["data/source=url"]
        code, _, err = call_main(train.main, *shared, *steps, "name=other", f"data.folder={folder}", *source)
        assert (code, err.count("\n")) == (2, 1)
        assert f"data.folder={folder}" in err
        assert words in err
