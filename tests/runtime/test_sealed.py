"""Files of weights and fits tell when they were changed; the same content is the same file."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_parts import ROOT, contents, naming, synthetic

from migm.accelerators.calibration import Calibration
from migm.runtime.errors import UserError
from migm.runtime.sealed import write_tensors
from migm.shortcuts.checkpoint import load_shortcut, save_shortcut
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
    code = "import sys, torch; from pathlib import Path; from migm.runtime.sealed import write_tensors; "
    code += f"write_tensors({{'b': torch.ones(2), 'a': torch.zeros(1)}}, Path(sys.argv[1]), {about!r})"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "4")], cwd=ROOT, check=True)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    with safe_open(tmp_path / "1", "pt") as file:
        assert file.metadata() == about
        assert torch.equal(file.get_tensor("b"), torch.ones(2))
