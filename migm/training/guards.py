"""Guard a training against losses and gradients that are not finite."""

from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from migm.runtime.console import Plain
from migm.runtime.errors import UserError
from migm.trajectories.dataset import Pairs


class FiniteGuard(L.Callback):
    """Check loss and gradients before the optimizer's step; stop and name the batch if they are not finite.

    With `non_finite` "skip" the step changes no weight instead, on all ranks alike; `skipped` counts these steps and is
    logged as `train/skipped_steps`. In precision 16-mixed the gradients are left to Lightning's scaler.
    """

    def __init__(self, non_finite: Literal["stop", "skip"] = "stop"):
        self.non_finite, self.skipped = non_finite, 0
        self.seen: list[tuple[Pairs, Tensor]] = []  # batches since the last step and their losses
        self.batch: Any = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Pairs, batch_idx: int
    ) -> None:
        self.batch = batch

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self.seen.append((self.batch, loss.detach()))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        seen, self.seen = self.seen, []
        losses = torch.stack([loss.float() for _, loss in seen])
        largest = losses.abs().max()
        if trainer.scaler is None:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            largest = largest.maximum(get_total_norm(gradients, float("inf")))
        if trainer.strategy.reduce_boolean_decision(bool(largest.isfinite())):
            return
        what = f"the loss is {losses.sum():g}" if not losses.isfinite().all() else "a gradient is not finite"
        where = f"training step {trainer.global_step}: {what} on {'; '.join(named(batch) for batch, _ in seen)}"
        if self.non_finite == "stop":
            raise UserError(f"{where}; callbacks.guard.non_finite=skip leaves such batches out")
        for parameter in pl_module.parameters():
            parameter.grad = None  # optimizers leave it alone, moments and weight decay included
        self.skipped += 1
        pl_module.log("train/skipped_steps", float(self.skipped))
        Plain(stderr=True).print(f"left out: {where}", highlight=False)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]


def named(batch: Pairs) -> str:
    """Return the image and step of the batch's pairs, or only of those whose stored features are not finite."""
    pairs = [f"{image} step {step}" for image, step in zip(batch.images.tolist(), batch.steps.tolist(), strict=True)]
    finite = batch.features.isfinite().flatten(1).all(1) & batch.target.isfinite().flatten(1).all(1)
    bad = [pair for pair, good in zip(pairs, finite.tolist(), strict=True) if not good]
    return f"image {', image '.join(bad or pairs)}" + " (stored features that are not finite)" * bool(bad)
