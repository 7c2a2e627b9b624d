"""Files are written whole or not at all, by one module; those of weights and fits tell when they were changed."""

import ast
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_parts import ROOT, contents, naming, synthetic

from migm.accelerators.calibration import Calibration
from migm.metrics.reference import Reference
from migm.runtime.errors import UserError
from migm.runtime.figures import plt, write_figure
from migm.runtime.files import (
    content_hash,
    file_hash,
    replacing,
    tensors_hash,
    write_atomic,
    write_json,
    write_sealed,
    write_tensors,
)
from migm.runtime.pictures import write_image
from migm.shortcuts.checkpoint import load_shortcut, save_shortcut
from migm.training.checkpoints import CheckpointFiles
from migm.trajectories.store import Store


def flips(path: Path, number: int) -> Any:
    """The file with one bit flipped at random offsets, a third of them in its header; restored after each."""
    whole, rng = path.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    for i in range(number):
        offset = rng.randrange(header if i % 3 == 0 else len(whole))
        data = bytearray(whole)
        data[offset] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        yield offset
    path.write_bytes(whole)


def read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except Exception:
        return {}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def test_a_flipped_bit_of_a_shortcut_is_refused_or_means_nothing(make_shortcut, tmp_path):
    path = tmp_path / "shortcut.safetensors"
    save_shortcut(make_shortcut().float(), "base01", path)
    wanted, fingerprint = load_file(path), load_shortcut(path, "base01", "key")[1]
    refused: list[str] = []
    for offset in flips(path, 300):
        try:
            found = load_shortcut(path, "base01", "key")[1]
        except UserError as refusal:
            refused.append(str(refusal))
        else:  # a blank at the header's end
            assert found == fingerprint, offset
            assert same(read(path), wanted), offset
    assert len(refused) > 290
    assert all(str(path) in text for text in refused)


def test_a_flipped_bit_of_a_fit_is_refused_or_means_nothing(tiny_base, tmp_path):
    path = tmp_path / "fit.safetensors"
    gram = np.random.default_rng(0).random((6, 6))
    Calibration(gram, {"input": [1.0, 2.0]}, tiny_base.fingerprint()).save(path)
    refused: list[str] = []
    for offset in flips(path, 300):
        try:
            found = Calibration.load(path, tiny_base, 6, "key")
        except UserError as refusal:
            refused.append(str(refusal))
        else:
            assert np.array_equal(found.gram, gram), offset
            assert found.polynomials == {"input": [1.0, 2.0]}, offset
    assert len(refused) > 280
    assert all(str(path) in text for text in refused)


def test_a_flipped_bit_of_a_shard_is_refused_by_name(tmp_path):
    store = Store(tmp_path, {"base": "b"})
    store.append(synthetic((0, 1)))
    for offset in flips(tmp_path / "000000.safetensors", 200):
        with pytest.raises(UserError, match=naming("data.folder", "000000.safetensors")):
            Store(tmp_path).verify()
        assert offset >= 0
    Store(tmp_path).verify()
    assert torch.equal(contents(store)["images"], torch.tensor([0, 1]))


def test_a_shard_that_holds_other_than_its_line_says_is_refused(tmp_path):
    store = Store(tmp_path, {"base": "b"})
    store.append(synthetic((0, 1)))
    lines = [json.loads(line) for line in store.manifest.read_text().splitlines()]
    store.manifest.write_text("".join(json.dumps(line) + "\n" for line in (lines[0], {**lines[1], "count": 1})))
    with pytest.raises(UserError, match=naming("000000.safetensors", "holds 2 images", "says 1")):
        Store(tmp_path).verify(contents=False)


def test_files_of_an_earlier_version_have_no_hash_and_are_read(make_shortcut, tmp_path):
    path = tmp_path / "shortcut.safetensors"
    save_shortcut(make_shortcut().float(), "base01", path)
    with safe_open(path, "pt") as file:
        about = {key: value for key, value in file.metadata().items() if key != "hash"}
    tensors, fingerprint = load_file(path), load_shortcut(path, "base01", "key")[1]
    save_file(tensors, path, about)
    assert load_shortcut(path, "base01", "key")[1] == fingerprint


def test_the_same_content_is_the_same_file_in_every_process(tmp_path):
    tensors, about = {"b": torch.ones(2), "a": torch.zeros(1)}, dict(zip("ükxyz", 'ö"23\n', strict=True))
    for name in "123":
        write_tensors(tensors, tmp_path / name, about)
    assert list(tmp_path.glob("*.tmp")) == []
    code = "import sys, torch; from pathlib import Path; from migm.runtime.files import write_tensors; "
    code += f"write_tensors({{'b': torch.ones(2), 'a': torch.zeros(1)}}, Path(sys.argv[1]), {about!r})"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "4")], cwd=ROOT, check=True)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    with safe_open(tmp_path / "1", "pt") as file:
        assert file.metadata() == about
        assert torch.equal(file.get_tensor("b"), torch.ones(2))


def test_tensors_without_metadata_are_what_safetensors_writes(tmp_path):
    tensors = {"b": torch.ones(2), "a": torch.zeros(1)}
    write_tensors(tensors, tmp_path / "ours")
    save_file(tensors, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


WRITERS: dict[str, Callable[[Path, int], object]] = {
    "bytes": lambda path, number: write_atomic(path, bytes([number])),
    "text": lambda path, number: write_atomic(path, f"{number} ü\n"),
    "json": lambda path, number: write_json(path, {"number": number}),
    "tensors": lambda path, number: write_tensors({"a": torch.tensor(number)}, path, {"format": "x"}),
    "sealed": lambda path, number: write_sealed({"a": torch.tensor(number)}, path, {"format": "x"}),
    "image": lambda path, number: write_image(torch.full((3, 4, 4), number, dtype=torch.uint8), path),
    "figure": lambda path, number: write_figure(plt.figure(figsize=(number, 1)), path),
    "checkpoint": lambda path, number: CheckpointFiles(1).save_checkpoint({"a": number}, path),
    "reference": lambda path, number: Reference({"mu": torch.tensor([float(number)])}).save(path),
}
NAMED = {"image": "resume.png", "figure": "resume.png"}


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_written_is_synced_before_it_takes_its_name_at_once(tmp_path, monkeypatch, kind):
    path, events = tmp_path / NAMED.get(kind, "resume.ckpt"), []
    WRITERS[kind](path, 1)
    old, fsync, replace = path.read_bytes(), os.fsync, os.replace

    def synced(file: int) -> None:
        assert path.read_bytes() == old
        events.append(os.fstat(file).st_ino)
        fsync(file)

    def renamed(source: Path, target: Path) -> None:
        assert events == [source.stat().st_ino]
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    WRITERS[kind](path, 2)
    new = path.read_bytes()
    assert new != old
    assert events == [path.stat().st_ino]
    monkeypatch.undo()
    WRITERS[kind](path, 2)
    assert path.read_bytes() == new


@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_killed_writer_leaves_the_old_file_and_the_next_one_nothing_else(tmp_path, monkeypatch, kind, moment):
    path = tmp_path / NAMED.get(kind, "resume.ckpt")
    WRITERS[kind](path, 1)
    old, held = path.read_bytes(), sorted(os.listdir(tmp_path))
    process = os.fork()
    if not process:
        monkeypatch.setattr(os, moment, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        WRITERS[kind](path, 2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert path.read_bytes() == old
    assert path.with_name(f"{path.name}.tmp").is_dir()
    WRITERS[kind](path, 2)
    assert path.read_bytes() != old
    assert sorted(os.listdir(tmp_path)) == held


def test_older_files_move_on_after_the_new_one_is_synced(tmp_path, monkeypatch):
    path, *previous = names = [tmp_path / name for name in "abc"]
    for number in range(4):
        with replacing(path, *previous) as temporary:
            temporary.write_text(str(number))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"), replacing(path, *previous) as temporary:
        temporary.write_text("4")
    assert [name.read_text() for name in names] == ["3", "2", "1"]
    assert len(list(tmp_path.iterdir())) == 3


def test_what_torch_hub_left_of_a_download_is_removed_and_notes_beside_it_stay(tmp_path):
    for name in ("a.pth.0f3c.partial", "a.pth-notes.txt"):
        left = tmp_path / "a.pth.tmp"
        left.mkdir(exist_ok=True)
        (left / name).touch()
        write_atomic(tmp_path / "a.pth", b"")
        assert left.exists() == name.endswith("txt")


def test_hashes_are_those_of_earlier_versions(tmp_path):
    (tmp_path / "a").write_bytes("ü".encode())
    digest = "607474ca475a9724d7360aba71a56d5df77e61350e3f724cfa1f46e857e2d85f"
    assert file_hash(tmp_path / "a") == digest
    assert content_hash("ü") == digest[:12]
    assert content_hash(memoryview("ü".encode()), digits=64) == digest
    assert tensors_hash({"b": torch.arange(3), "a": torch.tensor(1.5)}, "x", "y") == "451c9aa650c7"


# Modules that may do what `runtime/files.py` does for all others, and why.
ELSEWHERE = {
    "runtime/jsonl.py": {"fsync", "open"},  # appends: what is there stays
    "runtime/writing.py": {"open"},  # tries whether a file can be added to, and writes nothing
    "trajectories/remote.py": {"open"},  # an empty file to lock
    "benchmarks/loading.py": {"fsync"},  # of files that it reads, before it drops them from the page cache
    "metrics/scorers/worker.py": {"write_text"},  # runs without this package, in a temporary folder
}
SOURCES = sorted((ROOT / "migm").rglob("*.py"))
FORBIDDEN = {"hashlib", "fsync", "save_file", "write_text", "write_bytes", "savefig", "NamedTemporaryFile", "mkstemp"}


def forbidden(path: Path) -> set[str]:
    """What a module imports or calls of these, and files that it renames or opens to write, but for `temporary`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {getattr(node, "module", ""), *(alias.name for alias in node.names)} & FORBIDDEN
        elif isinstance(node, ast.Call) and "temporary" not in map(ast.unparse, (*node.args, *owner(node))):
            name = ast.unparse(node.func).rpartition(".")[2]
            modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            # Strings have a `replace` too, with two arguments; that of dataclasses has keywords.
            renames = name in ("replace", "rename") and not node.keywords and len(node.args) == 1
            renames |= ast.unparse(node.func) in ("os.replace", "os.rename")
            writes = name == "open" and any(re.fullmatch(r"[wax]b?\+?|rb?\+b?", mode) for mode in modes)
            found |= {name} if renames or writes else {name} & FORBIDDEN
    return found


def owner(call: ast.Call) -> list[ast.expr]:
    return [call.func.value] if isinstance(call.func, ast.Attribute) else []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "migm").rglob("*.py")), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_no_other_module_writes_renames_or_hashes_files_by_its_own_means(path):
    name = path.relative_to(ROOT / "migm").as_posix()
    if name == "runtime/files.py":
        assert {"hashlib", "fsync", "replace", "save_file", "open"} <= forbidden(path)
    else:
        assert forbidden(path) <= ELSEWHERE.get(name, set())
