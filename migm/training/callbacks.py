"""Lightning callbacks for the progress of a training."""

from typing import Any

import lightning as L
from rich.progress import Progress, TaskID

from migm.runtime.console import Plain
from migm.runtime.kinds import Count
from migm.runtime.progress import progress


class StepProgress(L.Callback):
    """One bar over all steps of a training, with the rate and the remaining time of the whole run.

    Lightning's bars count the batches of an epoch, which says little if max_steps ends the training.
    """

    def __init__(self, refresh_every: Count = 10):
        self.refresh_every = refresh_every
        self.bar: Progress | None = None
        self.task = TaskID(0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.bar = progress(Plain(), "steps")
            self.bar.start()
            self.task = self.bar.add_task("train", total=trainer.max_steps, completed=trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.bar and (trainer.global_step % self.refresh_every == 0 or trainer.global_step == trainer.max_steps):
            metrics = trainer.progress_bar_metrics.items()
            shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics if name != "v_num")
            self.bar.update(self.task, completed=trainer.global_step, description=shown or "train")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None
