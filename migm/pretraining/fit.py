"""One resumable Lightning run for each pretraining stage."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from migm.trajectories.loader import StatefulLoader


class Rows:
    """Tensors of equal length, indexed together: a `BatchDataset` in memory."""

    def __init__(self, *columns: Tensor):
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        return tuple(column[list(indices)] for column in self.columns)


def fit(
    module: L.LightningModule,
    data: Rows,
    folder: Path,
    batch_size: int,
    max_steps: int,
    seed: int,
    precision: Any = "bf16-mixed",
    callbacks: tuple[Callback, ...] = (),
    devices: int = 1,
) -> None:
    """Train `module` to `max_steps`; a run that was stopped goes on from its last checkpoint in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = ModelCheckpoint(folder, filename="resume", every_n_train_steps=250, enable_version_counter=False)
    trainer = L.Trainer(
        max_steps=max_steps,
        precision=precision,
        devices=devices,
        callbacks=[checkpoint, RichProgressBar(refresh_rate=20), *callbacks],
        logger=CSVLogger(folder, name="", version=""),
        log_every_n_steps=50,
        use_distributed_sampler=False,
        default_root_dir=folder,
        enable_model_summary=False,
    )
    rank, world_size = trainer.global_rank, trainer.world_size
    loader = StatefulLoader(data, batch_size, seed, rank, world_size)
    resume = folder / "resume.ckpt"
    trainer.fit(module, loader, ckpt_path=resume if resume.exists() else None, weights_only=True)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Noise of one training step, the same after a resume."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)
