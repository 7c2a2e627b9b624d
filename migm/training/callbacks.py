"""Lightning callbacks for the progress and the averaged weights of a training."""

from collections.abc import Iterable
from itertools import chain
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from rich.progress import Progress, TaskID

from migm.runtime.console import Plain
from migm.runtime.kinds import Count
from migm.runtime.progress import progress


class StepProgress(L.Callback):
    """One bar over all steps of a training, with the rate and the remaining time of the whole run.

    Lightning's bars count the batches of an epoch, which says little if max_steps ends the training. The metrics that
    the module names in `shown` are read where it logs (`trainer.log_every_n_steps`), since reading waits for the
    device.
    """

    def __init__(self, refresh_every: Count = 10):
        self.refresh_every = refresh_every
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.text = "train"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.bar = progress(Plain(), "steps", part="train")
            self.bar.start()
            self.task = self.bar.add_task("train", total=trainer.max_steps, completed=trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done, ended = trainer.global_step, trainer.global_step == trainer.max_steps
        if self.bar and (done % self.refresh_every == 0 or ended):
            metrics = {name: value for name, value in trainer.progress_bar_metrics.items() if name != "v_num"}
            every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
            if ended or (every and done % every == 0):
                known, named = trainer.callback_metrics, getattr(pl_module, "shown", ())
                metrics |= {name: known[name].item() for name in named if name in known}
            if metrics:
                self.text = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            self.bar.update(self.task, completed=done, description=self.text)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None


class Averaging(EMAWeightAveraging):
    """Lightning's exponential moving average of the weights, to the bit, without its two waits for the device a step.

    Torch's averaged model asks the device at every update whether it is the first; the number of the last updated step
    says so too.
    """

    def __init__(self, decay: float = 0.999, **options: Any):
        super().__init__(decay=decay, **options)
        self.decay = decay

    @property
    def state_key(self) -> str:
        return EMAWeightAveraging.__qualname__  # checkpoints are those of Lightning's own

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        average, done = self._average_model, trainer.global_step
        first = self._latest_update_step == 0 and self._latest_update_epoch < 0
        if first or average is None or self._device is not None or not self._use_buffers:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        elif done > self._latest_update_step and self.should_update(step_idx=done - 1):
            move(tensors(average.module), tensors(pl_module), self.decay)
            average.n_averaged += 1
            self._latest_update_step = done


def tensors(module: torch.nn.Module) -> Iterable[torch.Tensor]:
    """Return parameters and buffers."""
    return chain(module.parameters(), module.buffers())


def move(averages: Iterable[torch.Tensor], values: Iterable[torch.Tensor], decay: float) -> None:
    """Set averages to decay * average + (1 - decay) * value, rounded as torch's own function rounds."""
    both = [(a.detach(), x.detach()) for a, x in zip(averages, values, strict=True)]
    for average, value in both:
        if not average.is_floating_point():
            average.copy_(decay * average + (1 - decay) * value)
    old, new = ([pair[i] for pair in both if pair[0].is_floating_point()] for i in (0, 1))
    if old:
        torch._foreach_mul_(old, decay)  # type: ignore[attr-defined]
        scaled = torch._foreach_mul(new, 1 - decay)  # type: ignore[attr-defined]
        torch._foreach_add_(old, scaled)  # type: ignore[attr-defined]
