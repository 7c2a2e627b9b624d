"""The LightningModule: a trainable shortcut beside a frozen base."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from migm.bases.base import Base
from migm.runtime.compiling import Fast, as_it_is
from migm.sampling.guidance import Guidance
from migm.shortcuts.network import ShortcutNetwork
from migm.training.guided import fidelity
from migm.training.objective import Objective, made_ready
from migm.trajectories.dataset import Pairs
from migm.trajectories.replay import with_features

Held = TypeVar("Held", bound=Base)
WANDB_RUN = "wandb_run"  # key in checkpoints


class Frozen(Generic[Held]):
    """Hold the base outside the module tree, so that EMA and checkpoints contain the shortcut alone."""

    def __init__(self, base: Held):
        self.base = base

    def __deepcopy__(self, memo: dict[int, Any]) -> "Frozen[Held]":
        return self


class ShortcutModule(L.LightningModule):
    """Optimise `shortcut` for `objective`; `config` is the resolved config, kept in checkpoints.

    `fast` compiles functions of the step, not modules, so that weights have the same names either way. `guidance` is
    that of the trajectories' sampler. Where both guidance halves of an image are in one batch, validation also logs the
    measures of the analysis `fidelity` one step after a full one, as means over images and steps. By default the host
    waits for the device at no step between two that log (`trainer.log_every_n_steps`).
    """

    shown = ("train/feature_mse",)  # in the progress

    def __init__(
        self,
        shortcut: ShortcutNetwork,
        base: Base,
        objective: Objective,
        optimizer: Callable[..., Optimizer],
        lr_schedule: Callable[..., LRScheduler],
        config: dict[str, Any],
        fast: Fast = as_it_is,
        guidance: Guidance | None = None,
    ):
        super().__init__()
        self.fast, self.guidance = fast, guidance
        self.shortcut, self.frozen, self.objective = shortcut, Frozen(base), made_ready(objective, guidance, fast)
        self.optimizer, self.lr_schedule = optimizer, lr_schedule
        self.seed = config.get("seed", 0)
        self.wandb_run: str | None = None  # the run that a loaded checkpoint names
        self.save_hyperparameters({"config": config, "base": base.fingerprint()})

    def on_train_batch_start(self, batch: Pairs, batch_idx: int) -> None:
        # Dropout depends on seed, step and rank alone, so that a resumed training draws the same values.
        torch.manual_seed(hash((self.seed, self.global_step, batch_idx, self.global_rank)))

    def training_step(self, batch: Pairs, _: int) -> Tensor:
        batch = with_features(batch, self.frozen.base, self.fast)
        loss, log = self.objective(self.shortcut, self.frozen.base, batch, self.global_step)
        log, share = self._of_all(log)
        bar = self.trainer.progress_bar_callback is not None  # of Lightning's own, which read at every step
        self.log("train/feature_mse", log.pop("feature_mse"), prog_bar=bar)
        self.log_dict({f"train/{name}": value for name, value in log.items()})
        return loss * share

    def validation_step(self, batch: Pairs, _: int, dataloader_idx: int = 0) -> None:
        batch = with_features(batch, self.frozen.base, self.fast)
        log = self.objective(self.shortcut, self.frozen.base, batch)[1]
        rows = int(log.pop("rows"))  # weights the mean by rows, however they are split into batches and processes
        # The second loader has pairs that are as far apart as the network is to predict
        end = f"_gap{self.shortcut.max_gap}" if dataloader_idx else ""
        shared: dict[str, Any] = {"sync_dist": True, "add_dataloader_idx": False}
        self.log_dict({f"val/{name}{end}": value for name, value in log.items()}, batch_size=rows, **shared)
        if batch.halves_together:
            measured = fidelity(self.shortcut, self.frozen.base, batch, self.guidance, self.fast)
            images = len(batch.steps) // batch.halves_together
            self.log_dict({f"val/{name}{end}": x for name, x in measured.items()}, batch_size=images, **shared)

    def _of_all(self, log: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | float]:
        """Return means over the rows of all processes, and the factor of this process's loss.

        DDP averages gradients over processes as if all had judged equally many rows. With this factor, the average is
        the gradient of the mean over all rows, as one process with all batches would compute it.
        """
        rows, processes = log.pop("rows"), self.trainer.world_size
        if processes == 1:
            return log, 1.0
        sums = torch.stack([rows, *(value * rows for value in log.values())])
        every, *totals = self.trainer.strategy.reduce(sums, reduce_op="sum")
        every = every.clamp(min=1)
        return dict(zip(log, (total / every for total in totals), strict=True)), rows * processes / every

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the id of the W&B run in the checkpoint, so that a resumed training goes on with that run."""
        runs = [logger.version for logger in self.trainer.loggers if isinstance(logger, WandbLogger)]
        checkpoint[WANDB_RUN] = runs[0] if runs else self.wandb_run

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.wandb_run = checkpoint.get(WANDB_RUN)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.optimizer(self.shortcut.named_parameters())
        schedule = self.lr_schedule(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
