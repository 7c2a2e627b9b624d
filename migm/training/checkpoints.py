"""Write checkpoints whole or not at all, sealed by a hash; keep the last few, and save when a run is ended."""

import io
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from migm.runtime.errors import Stopped, UserError
from migm.runtime.files import content_hash, replacing
from migm.runtime.kinds import Count
from migm.runtime.owned import only, own, refuse_foreign

MARK = b"sha256="
SEAL = len(MARK) + 64  # bytes
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
PLACE = ("checkpoints", "callbacks.checkpoint.dirpath")  # the folder's content, and its key
NAMES = r"resume(-\d+)?\.ckpt(\.tmp)?"  # the names of all files in the folder
UNSEALED = b"PK\x05\x06"  # 22 bytes before the end of a zip without a comment


class CheckpointFiles(TorchCheckpointIO):
    """Write `x.ckpt` at once and keep the `keep` last checkpoints: `x.ckpt`, before that `x-1.ckpt`, and so on.

    Lightning writes to the system's temporary folder and moves the file. On another disk that is a copy, which a kill
    can cut. torch.load checks no checksums, so the comment at the zip's end is a SHA-256 of all bytes before it.
    """

    def __init__(self, keep: int):
        self.keep = keep

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path, buffer = Path(path), io.BytesIO()
        torch.save(checkpoint, buffer)
        data = buffer.getbuffer()[:-2]  # without the comment's length
        own(path.parent, *PLACE, only(path.parent, NAMES))
        previous = [older(path, i) for i in range(1, self.keep)]
        with replacing(path, *previous) as temporary, temporary.open("wb") as file:
            file.writelines([data, _seal(data)])


def older(path: Path, number: int) -> Path:
    """Return the path of the checkpoint that was at `path` `number` checkpoints ago."""
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def is_whole(path: Path) -> bool:
    """Return whether a checkpoint is as it was written; one of an earlier version has no seal and passes."""
    data = memoryview(path.read_bytes())
    if data[-22:-18] == UNSEALED:
        return True
    body, seal = data[: -SEAL - 2], data[-SEAL - 2 :]
    return seal == _seal(body)


def _seal(data: memoryview) -> bytes:
    """Return the end of a zip: the comment's length, then the comment, a SHA-256 of all bytes before."""
    return SEAL.to_bytes(2, "little") + MARK + content_hash(data, digits=64).encode()


def newest(path: Path) -> tuple[Path | None, list[Path]]:
    """Return the newest whole checkpoint among `path` and its predecessors, and the damaged ones that are newer."""
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
    """Save `resume.ckpt` every `every_n_train_steps`, keep the `keep` last, and save once more when a run is ended.

    A run is ended by SIGTERM, by SIGUSR1 (which SLURM sends before its time limit, if configured), or by
    `trainer.max_time`, counted from each start. All ranks then finish their training step, save and raise `Stopped`.
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
        self._take_signals()  # Replaces Lightning's handlers, which act in the middle of a step, or on one rank alone.

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        stepped, self.step = trainer.global_step > self.step, trainer.global_step
        asked = trainer.strategy.reduce_boolean_decision(bool(self.signal), all=False)
        # At this point only the timer can have asked to stop: callbacks that look at errors come later.
        if stepped and trainer.global_step < trainer.max_steps and (asked or trainer.should_stop):
            path = Path(str(self.dirpath)) / f"{self.filename}{self.FILE_EXTENSION}"
            if self._last_global_step_saved != trainer.global_step:
                self._save_checkpoint(trainer, str(path))
            why = signal.Signals(self.signal or signal.SIGTERM).name if asked else "trainer.max_time is over"
            code = 128 + (self.signal or signal.SIGTERM) if asked else 75
            raise Stopped(f"{why}; step {trainer.global_step} is saved in {path}", code)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["callbacks"].pop("Timer", None)  # with it, the next start would have no time left

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals during the block, in which `Trainer.fit` runs, then restore the old handlers."""
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
