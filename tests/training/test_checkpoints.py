"""Checkpoints: a run ended from outside goes on exactly, the last few are kept, damage is found wherever it is."""

import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Timer
from tiny_parts import collected, naming, same_tensors, tiny

from migm.config.building import build
from migm.runtime.errors import Stopped, UserError
from migm.training.checkpoints import CheckpointFiles, is_whole, newest
from migm.training.module import ShortcutModule
from migm.training.run import Training

STEPS = 24  # of 10 batches an epoch
EVERY = "callbacks.checkpoint.every_n_train_steps=5"


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("stored")
    collected(tiny(output))
    return output


def run(stored: Path, output: Path, *overrides: str) -> Path:
    """One training as `migm.train` does it, with dropout; returns the run's folder."""
    shared = [f"data.folder={tiny(stored).data['folder']}", f"trainer.max_steps={STEPS}", "lr_schedule.warmup_steps=5"]
    config = tiny(output, *shared, "shortcut.dropout=0.1", EVERY, *overrides)
    base = build(config.base)
    Training(config, base).run(build(config.data))
    return output / "tiny_shortcut"


@pytest.fixture(scope="module")
def whole(stored, tmp_path_factory) -> Path:
    return run(stored, tmp_path_factory.mktemp("whole"), "callbacks.checkpoint.keep=3")


def saved_step(path: Path) -> int:
    return torch.load(path, map_location="cpu", weights_only=True)["global_step"]


def at_step(monkeypatch, number: int, act: Any) -> None:
    """Call `act` in the middle of training step `number`."""
    step = ShortcutModule.training_step

    def acting(self, batch, i):
        if self.global_step == number:
            act()
        return step(self, batch, i)

    monkeypatch.setattr(ShortcutModule, "training_step", acting)


@pytest.mark.parametrize(
    ("number", "step"),
    [
        pytest.param(signal.SIGTERM, 6, id="in an epoch"),
        pytest.param(signal.SIGUSR1, 9, id="at its end"),
        pytest.param(signal.SIGTERM, 9, id="at its end by another", marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 6, id="in an epoch by another", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 13, id="in the next", marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 13, id="in the next by another", marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_the_step_at_hand_and_the_next_start_goes_on_exactly(
    stored, whole, tmp_path, monkeypatch, number, step
):
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: os.kill(os.getpid(), number))
        with pytest.raises(Stopped, match=naming(number.name, f"step {step + 1}", "resume.ckpt")) as stopped:
            run(stored, tmp_path)
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) == before
    folder = tmp_path / "tiny_shortcut"
    assert saved_step(folder / "checkpoints" / "resume.ckpt") == step + 1
    assert not (folder / "shortcut.safetensors").exists()
    run(stored, tmp_path)
    assert same_tensors(folder / "shortcut.safetensors", whole / "shortcut.safetensors")


def test_a_time_limit_is_that_of_each_start(stored, whole, tmp_path, monkeypatch):
    limit, elapsed = "trainer.max_time=00:00:01:00", Timer.time_elapsed
    with monkeypatch.context() as patch:
        late = lambda: patch.setattr(Timer, "time_elapsed", lambda self, *_: 61.0)  # noqa: E731
        at_step(patch, 7, late)
        with pytest.raises(Stopped, match=naming("trainer.max_time", "step 8")) as stopped:
            run(stored, tmp_path, limit)
    assert stopped.value.code
    folder = tmp_path / "tiny_shortcut"
    assert saved_step(folder / "checkpoints" / "resume.ckpt") == 8
    assert Timer.time_elapsed is elapsed
    run(stored, tmp_path, limit)
    assert same_tensors(folder / "shortcut.safetensors", whole / "shortcut.safetensors")


def test_a_signal_in_the_last_step_ends_nothing(stored, whole, tmp_path, monkeypatch):
    at_step(monkeypatch, STEPS - 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    folder = run(stored, tmp_path)
    assert same_tensors(folder / "shortcut.safetensors", whole / "shortcut.safetensors")


def test_the_last_ones_are_kept_and_no_more(whole):
    files = {path.name: saved_step(path) for path in (whole / "checkpoints").glob("*.ckpt")}
    assert files == {"resume.ckpt": 24, "resume-1.ckpt": 20, "resume-2.ckpt": 15}
    assert all(is_whole(whole / "checkpoints" / name) for name in files)


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "tiny_shortcut")
    return tmp_path / "tiny_shortcut" / "checkpoints"


def flip(path: Path, offset: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["flipped", "cut", "empty"])
def test_of_a_damaged_one_the_one_before_is_used_and_that_is_said(stored, whole, copied, tmp_path, capsys, how):
    path = copied / "resume.ckpt"
    if how == "flipped":
        flip(path, path.stat().st_size // 2)
    else:
        path.write_bytes(path.read_bytes()[: -1000 if how == "cut" else 0])
    run(stored, tmp_path, "callbacks.checkpoint.keep=3")
    said = "".join(capsys.readouterr().out.split())
    assert f"{path}isdamaged" in said
    assert f"resumingfrom{copied / 'resume-1.ckpt'},step20" in said
    assert same_tensors(copied.parent / "shortcut.safetensors", whole / "shortcut.safetensors")
    assert saved_step(path) == STEPS


def test_a_kill_between_the_renames_leaves_the_one_before(stored, whole, copied, tmp_path):
    (copied / "resume.ckpt").unlink()
    assert newest(copied / "resume.ckpt") == (copied / "resume-1.ckpt", [])
    run(stored, tmp_path)
    assert same_tensors(copied.parent / "shortcut.safetensors", whole / "shortcut.safetensors")


def test_when_all_are_damaged_they_are_named_and_nothing_is_trained(stored, copied, tmp_path):
    for path in copied.glob("*.ckpt"):
        flip(path, 5000)
    with pytest.raises(UserError, match=naming("resume.ckpt", "resume-1.ckpt", "damaged", "delete")):
        run(stored, tmp_path)


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path):
    path = tmp_path / "x.ckpt"
    CheckpointFiles(1).save_checkpoint({"weights": torch.randn(300, generator=torch.Generator().manual_seed(0))}, path)
    size, rng, whole = path.stat().st_size, random.Random(0), path.read_bytes()
    assert is_whole(path)
    for offset in [*range(size - 100, size), *(rng.randrange(size) for _ in range(500))]:
        flip(path, offset, rng.randrange(8))
        assert not is_whole(path), offset
        path.write_bytes(whole)
    loaded = torch.load(path, weights_only=True)
    assert loaded["weights"].shape == (300,)


def test_one_of_an_earlier_version_has_no_seal_and_is_read(tmp_path):
    torch.save({"weights": torch.zeros(3)}, tmp_path / "x.ckpt")
    assert is_whole(tmp_path / "x.ckpt")
