"""Train each pretraining stage by one resumable Lightning run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from migm.runtime.device import pick_device, pick_precision
from migm.runtime.errors import UserError
from migm.training.callbacks import StepProgress
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
    recipe: dict[str, Any],
    callbacks: tuple[Callback, ...] = (),
) -> None:
    """Train `module` to `max_steps`; a stopped run continues from its last checkpoint in `folder`.

    `recipe` must equal the recipe in the checkpoint, else UserError. Its `seed` also orders the data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    resume = folder / "resume.ckpt"
    module.save_hyperparameters({"recipe": recipe})
    if resume.exists():
        state = torch.load(resume, map_location="cpu", weights_only=True)
        if state.get("hyper_parameters", {}).get("recipe") != recipe:
            raise UserError(f"{resume} belongs to another recipe; delete {folder} or choose another pretrain.folder")
        if state["global_step"] >= max_steps:
            module.load_state_dict(state["state_dict"])  # the averaged weights, if averaging is on
            return
    checkpoint = ModelCheckpoint(folder, filename="resume", every_n_train_steps=250, enable_version_counter=False)
    trainer = L.Trainer(
        max_steps=max_steps,
        precision=pick_precision("auto", pick_device()),  # type: ignore[arg-type]
        devices=1,
        callbacks=[checkpoint, StepProgress(20), *callbacks],
        logger=CSVLogger(folder, name="log"),
        log_every_n_steps=50,
        use_distributed_sampler=False,
        default_root_dir=folder,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    loader = StatefulLoader(data, batch_size, recipe["seed"])
    trainer.fit(module, loader, ckpt_path=resume if resume.exists() else None, weights_only=True)
    trainer.save_checkpoint(resume)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of one training step's noise, the same after a resume."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)
