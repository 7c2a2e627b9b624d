"""Train each pretraining stage by one resumable Lightning run."""

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from migm.evaluation.cost import synchronise
from migm.runtime.console import Plain
from migm.runtime.device import pick_device, pick_precision
from migm.runtime.errors import UserError
from migm.training.callbacks import StepProgress
from migm.trajectories.loader import StatefulLoader

WARM_UP, TIMED = 10, 20  # steps by which a training's rate is measured


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
    module.save_hyperparameters({"recipe": recipe, "steps": max_steps})
    if resume.exists():
        state = torch.load(resume, map_location="cpu", weights_only=True)
        if state.get("hyper_parameters", {}).get("recipe") != recipe:
            raise UserError(f"{resume} belongs to another recipe; delete {folder} or choose another pretrain.folder")
        if state["global_step"] >= max_steps:
            module.load_state_dict(state["state_dict"])  # the averaged weights, if averaging is on
            return
    checkpoint = ModelCheckpoint(folder, filename="resume", every_n_train_steps=250, enable_version_counter=False)
    trainer = make_trainer(max_steps, folder, [checkpoint, StepProgress(20), *callbacks], CSVLogger(folder, name="log"))
    loader = StatefulLoader(data, batch_size, recipe["seed"])
    trainer.fit(module, loader, ckpt_path=resume if resume.exists() else None, weights_only=True)
    trainer.save_checkpoint(resume)


def make_trainer(max_steps: int, folder: Path, callbacks: list[Callback], logger: CSVLogger | bool) -> L.Trainer:
    """Return a trainer for one device, in the precision that trains fastest on it."""
    return L.Trainer(
        max_steps=max_steps,
        precision=pick_precision("auto", pick_device()),  # type: ignore[arg-type]
        devices=1,
        callbacks=callbacks,
        logger=logger,
        log_every_n_steps=50,
        use_distributed_sampler=False,
        default_root_dir=folder,
        enable_checkpointing=bool(logger),
        enable_model_summary=False,
        enable_progress_bar=False,
    )


class Clock(Callback):
    """Time the steps from the `first` on; the ones before warm up."""

    def __init__(self, first: int):
        self.first, self.began, self.seconds = first, 0.0, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step in (self.first, trainer.max_steps):
            synchronise(pl_module.device)
            now = time.perf_counter()
            self.began, self.seconds = now, now - self.began


def steps_within(
    minutes: float, module: L.LightningModule, data: Rows, folder: Path, batch_size: int, console: Plain
) -> int:
    """Return how many steps a training makes in this time, by 20 steps of a copy; a stopped one keeps its number.

    So the schedule is known from the start, and `minutes` become a number of steps that anyone can repeat.
    """
    resume = folder / "resume.ckpt"
    if resume.exists():
        return int(torch.load(resume, map_location="cpu", weights_only=True)["hyper_parameters"]["steps"])
    clock = Clock(WARM_UP)
    trainer = make_trainer(WARM_UP + TIMED, folder, [clock], False)
    trainer.fit(copy.deepcopy(module), StatefulLoader(data, batch_size, 0))
    steps = max(1, round(minutes * 60 * TIMED / clock.seconds))
    console.print(f"{steps} steps in {minutes:g} minutes, by {TIMED} steps in {clock.seconds:.2f} s")
    return steps


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of one training step's noise, the same after a resume."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)
