"""Checkpoints that survive: whole or not there, sealed by a hash, the last few kept, one more before a run is ended."""

import hashlib
import io
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from migm.runtime.errors import Stopped, UserError
from migm.runtime.files import replacing
from migm.runtime.kinds import Count
from migm.runtime.owned import only, own, refuse_foreign

MARK = b"sha256="
SEAL = len(MARK) + 64  # bytes
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
PLACE = ("checkpoints", "callbacks.checkpoint.dirpath")  # what is in the folder, and its key
NAMES = r"resume(-\d+)?\.ckpt(\.tmp)?"  # of all that lies there
UNSEALED = b"PK\x05\x06"  # 22 bytes before the end of a zip without comment


class CheckpointFiles(TorchCheckpointIO):
    """Writes `x.ckpt` at once and keeps the `keep` last: `x.ckpt`, before it `x-1.ckpt`, and so on.

    Lightning's own writes to the system's folder for temporary files and moves from there, which is a copy that
    a kill cuts where that is another disk. torch.load compares no checksums: a SHA-256 of all that
    comes before it is the comment at the zip's end.
    """

    def __init__(self, keep: int):
        self.keep = keep

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path, buffer = Path(path), io.BytesIO()
        torch.save(checkpoint, buffer)
        data = buffer.getbuffer()[:-2]  # without the length of the comment
        own(path.parent, *PLACE, only(path.parent, NAMES))
        with replacing(path) as temporary:
            with temporary.open("wb") as file:
                file.write(data)
                file.write(SEAL.to_bytes(2, "little") + MARK + hashlib.sha256(data).hexdigest().encode())
                file.flush()
                os.fsync(file.fileno())
            names = [path, *(older(path, i) for i in range(1, self.keep))]
            for newer, target in reversed(list(pairwise(names))):
                if newer.exists():
                    os.replace(newer, target)


def older(path: Path, number: int) -> Path:
    """Where the checkpoint lies that was `path` so many checkpoints ago."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is as it was written; one of an earlier version has no seal and passes."""
    data = memoryview(path.read_bytes())
    if data[-22:-18] == UNSEALED:
        return True
    body, seal = data[: -SEAL - 2], data[-SEAL - 2 :]
    return seal == SEAL.to_bytes(2, "little") + MARK + hashlib.sha256(body).hexdigest().encode()


def newest(path: Path) -> tuple[Path | None, list[Path]]:
    """The newest whole checkpoint of `path` and those before it, and the damaged ones that are newer."""
    damaged: list[Path] = []
    before = path.parent.glob(f"{path.stem}-*{path.suffix}")
    numbered = {name.stem.removeprefix(f"{path.stem}-"): name for name in before}
    for candidate in [path, *(numbered[i] for i in sorted(filter(str.isdecimal, numbered), key=int))]:
        if candidate.is_file():
            if is_whole(candidate):
                return candidate, damaged
            damaged.append(candidate)
    if damaged:
        names = ", ".join(map(str, damaged))
        raise UserError(f"{names}: damaged, and no older checkpoint is there; delete {path.parent} to start anew")
    return None, []


class Checkpoints(ModelCheckpoint):
    """`resume.ckpt` every `every_n_train_steps`, the `keep` last of them kept, and one more before a run is ended.

    SIGTERM, SIGUSR1 (which SLURM sends before its time limit, where asked to) and the end of `trainer.max_time`, which
    counts from each start, take effect after the training step at hand: all ranks save and raise `Stopped`.
    """

    def __init__(self, dirpath: str | Path, every_n_train_steps: Count = 500, keep: Count = 2):
        refuse_foreign(Path(dirpath), *PLACE, only(Path(dirpath), NAMES))
        super().__init__(dirpath, "resume", every_n_train_steps=every_n_train_steps, enable_version_counter=False)
        self.keep, self.signal, self.step = keep, 0, 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        trainer.strategy.checkpoint_io = CheckpointFiles(self.keep)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.step = trainer.global_step
        self._take_signals()  # from Lightning, whose own handlers act in the middle of a step, or on one rank alone

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        stepped, self.step = trainer.global_step > self.step, trainer.global_step
        asked = trainer.strategy.reduce_boolean_decision(bool(self.signal), all=False)
        # Only the timer has asked to stop by now: it comes before, callbacks that look at errors after.
        if stepped and trainer.global_step < trainer.max_steps and (asked or trainer.should_stop):
            path = Path(str(self.dirpath)) / f"{self.filename}{self.FILE_EXTENSION}"
            if self._last_global_step_saved != trainer.global_step:
                self._save_checkpoint(trainer, str(path))
            why = signal.Signals(self.signal or signal.SIGTERM).name if asked else "trainer.max_time is over"
            code = 128 + (self.signal or signal.SIGTERM) if asked else 75
            raise Stopped(f"{why}; step {trainer.global_step} is saved in {path}", code)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["callbacks"].pop("Timer", None)  # else a next start would have no time left

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While `Trainer.fit` runs, signals are noted; before and after they do what they did."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self._take_signals()
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _take_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: Any) -> None:
        self.signal = number
