"""Too little disk or memory is refused before long work; a disk that fills up stops a command cleanly."""

import errno
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tiny_parts import feature_net, naming, reference_for

import migm.collect
import migm.evaluate
import migm.runtime.resources
import migm.train
import migm.trajectories.collect
from migm.evaluation.results import identity, read
from migm.runtime.errors import UserError
from migm.runtime.files import replacing
from migm.runtime.resources import available_memory, refuse_full_disk, refuse_full_memory

MAINS = {"collect": migm.collect.main, "train": migm.train.main, "evaluate": migm.evaluate.main}
Run = Callable[..., tuple[int, str]]
SLOW = pytest.mark.slow


@pytest.fixture
def run(call_main, tmp_path) -> Run:
    """A command of the tiny experiment -> its exit code and standard error."""
    assets = tmp_path / "assets"
    reference_for(feature_net(assets / "cifarnet.safetensors"), assets / "cifarnet_train50k.safetensors")
    shared = ["+experiment=tiny_shortcut", f"paths.output_dir={tmp_path}", f"paths.assets={assets}", "device=cpu"]
    shared += [f"data.folder={tmp_path / 'store'}", "~points.shortcut", "~points.reuse"]

    def call(command: str, *more: str) -> tuple[int, str]:
        code, _, err = call_main(MAINS[command], *shared, *more)
        return code, err

    return call


def whole(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fill_up(monkeypatch, after: int) -> None:
    """Let the disk be full at the sync number `after`, and from then on."""
    synced, fsync = [0], os.fsync

    def full(file: int) -> None:
        synced[0] += 1
        if synced[0] > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")
        fsync(file)

    monkeypatch.setattr(os, "fsync", full)


def refused(outcome: tuple[int, str]) -> None:
    code, err = outcome
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, err
    assert "No space left" in lines[0]
    assert "goes on from here" in lines[0]
    assert "Traceback" not in err


# header, first shard, its line, second shard
@pytest.mark.parametrize("after", [0, pytest.param(1, marks=SLOW), 2, pytest.param(3, marks=SLOW)])
def test_a_full_disk_while_collecting_stops_cleanly_and_goes_on_later(run, tmp_path, monkeypatch, after):
    with monkeypatch.context() as patch:
        fill_up(patch, after)
        refused(run("collect"))
    store = tmp_path / "store"
    left = whole(store)
    assert not [name for name in left if ".tmp" in name]
    assert run("collect")[0] == 0
    now = whole(store)
    assert {name: data for name, data in now.items() if name in left and name.endswith("tensors")} == {
        name: data for name, data in left.items() if name.endswith("tensors")
    }
    assert len(now) == 4


def test_a_full_disk_at_a_checkpoint_leaves_the_one_before(run, tmp_path, monkeypatch):
    assert run("collect")[0] == 0
    steps = ["evaluate=false", "trainer.max_steps=12", "callbacks.checkpoint.every_n_train_steps=4"]
    with monkeypatch.context() as patch:
        fill_up(patch, 2)  # the config, and the first checkpoint
        refused(run("train", *steps))
    folder = tmp_path / "tiny_shortcut"
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {".migm-checkpoints", "resume.ckpt"}
    assert not (folder / "shortcut.safetensors").exists()
    assert run("train", *steps)[0] == 0
    assert (folder / "shortcut.safetensors").exists()


# the first is of what was asked for
@pytest.mark.parametrize("after", [0, pytest.param(1, marks=SLOW), 3, pytest.param(5, marks=SLOW)])
def test_a_full_disk_while_evaluating_keeps_what_was_measured(run, tmp_path, monkeypatch, after):
    with monkeypatch.context() as patch:
        fill_up(patch, after)
        refused(run("evaluate"))
    path = tmp_path / "tiny_shortcut" / "results.jsonl"
    kept = path.read_bytes() if after else b""
    assert run("evaluate")[0] == 0
    assert path.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    records = read(path)
    assert len({identity(record) for record in records}) == len(records)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 128 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)]
    if subprocess.run(line, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full_stops_a_collection_cleanly(run, small_disk, tmp_path, monkeypatch):
    store = small_disk / "store"
    refusal = run("collect", f"data.folder={store}")  # 235 kB
    assert refusal[0] == 2
    assert "data.num_images" in refusal[1]
    assert not store.exists()
    with monkeypatch.context() as patch:
        patch.setattr(migm.trajectories.collect, "refuse_full_disk", lambda *_: None)
        refused(run("collect", f"data.folder={store}"))
    assert sorted(path.name for path in store.iterdir()) == ["000000.safetensors", "manifest.jsonl"]
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    assert run("collect", f"data.folder={store}")[0] == 0
    assert run("collect")[0] == 0
    assert whole(store) == whole(tmp_path / "store")


def test_what_a_kill_left_of_a_file_is_removed_by_the_next_try(tmp_path):
    left = tmp_path / "a.txt.tmp"
    left.mkdir()
    (left / ".tmpX3").write_text("half")
    with replacing(tmp_path / "a.txt") as temporary:
        assert list(left.iterdir()) == []
        temporary.write_text("whole")
    with suppress(KeyError), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("other")
        raise KeyError
    assert whole(tmp_path) == {"a.txt": b"whole"}
    assert not left.exists()


@pytest.mark.parametrize("command", ["collect", "train"])
@pytest.mark.parametrize("storage", ["features", "online"])
def test_too_little_memory_is_refused_with_the_key_before_anything_is_written(
    run, tmp_path, monkeypatch, command, storage
):
    monkeypatch.setattr(migm.runtime.resources, "available_memory", lambda: 1000)
    code, err = run(command, f"data/storage={storage}")
    assert code == 2
    assert err.count("\n") == 1
    assert "of memory" in err
    assert ("data.shard_images" if command == "collect" else "shortcut") in err
    assert not (tmp_path / "store").exists()


def test_free_memory_is_the_smaller_of_machine_and_group(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable:     50 kB\n")
    monkeypatch.setattr(migm.runtime.resources, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(migm.runtime.resources, "CGROUP", tmp_path)
    assert available_memory() == 50 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("20000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 5000\n")
    assert available_memory() == 50 * 1024
    (tmp_path / "memory.max").write_text("40000\n")
    assert available_memory() == 40000 - 20000 + 5000
    monkeypatch.setattr(migm.runtime.resources, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(migm.runtime.resources, "CGROUP", tmp_path / "none")
    assert available_memory() is None
    refuse_full_memory(10**30, "x", "y")


def test_refusals_say_what_is_needed_and_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(migm.runtime.resources, "available_memory", lambda: 2_000_000)
    refuse_full_memory(1_000_000, "the shard", "lower it")
    with pytest.raises(UserError, match=naming("the shard needs 3.00 MB of memory, 2.00 MB are free; lower it")):
        refuse_full_memory(3_000_000, "the shard", "lower it")
    refuse_full_disk(tmp_path / "new", 1, "they", "lower it")
    with pytest.raises(UserError, match=naming("they needs", tmp_path, "free; lower it")):
        refuse_full_disk(tmp_path / "new", 10**18, "they", "lower it")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize(
    ("kept", "made"),
    [
        (True, "__import__('torch').ones(10_000_000).add(1).sum().long().item()"),
        (False, "len(bytearray(b'1') * 80_000_000)"),  # without the seconds that torch takes to import
    ],
    ids=["kept", "as the user set"],
)
def test_a_command_keeps_freed_memory_unless_the_user_set_malloc(kept, made):
    code = (
        "import resource; from migm.runtime.resources import keep_freed_memory; keep_freed_memory();"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt;"
        f"new = lambda: -faults() + 0 * {made} + faults();"
        "print(min(new() for _ in range(8)))"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1", **({} if kept else {"MALLOC_TRIM_THRESHOLD_": "131072"})}
    least = int(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout)
    assert (least < 1000) == kept  # 80 MB anew each time are 20,000 pages; the first calls always take some
