"""Guard a training against losses and gradients that are not finite."""

from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from migm.runtime.console import Plain
from migm.runtime.errors import UserError
from migm.trajectories.dataset import Pairs

MOST_UNREAD = 50  # steps


class Seen(NamedTuple):
    """Images, steps and a check of stored features, by which an error names a batch; on the device."""

    images: Tensor  # (b,)
    steps: Tensor  # (b,)
    stored: Tensor  # (b,) not finite where stored features are not

    @classmethod
    def of(cls, batch: Pairs) -> "Seen":
        read = (x for x in (batch.features, batch.target, batch.earlier) if x is not None)
        sums = (x.flatten(1).sum(1, dtype=torch.float32) for x in read)
        return cls(batch.images, batch.steps, sum(sums, torch.zeros((), device=batch.images.device)))


class Step(NamedTuple):
    """A training step: its number, its batches with their losses, and the largest loss or gradient."""

    number: int
    batches: list[tuple[Seen, Tensor]]
    largest: Tensor


class FiniteGuard(L.Callback):
    """Stop a training whose loss or gradients are not finite, and name the step and its batch.

    With "stop" the values stay on the device and are read every `trainer.log_every_n_steps` steps (at most 50), before
    every validation and before any checkpoint is written. So a training may make some steps beyond a bad one, but
    nothing that came of it is saved: the last checkpoint is from before it.

    With `non_finite` "skip" that step changes no weight instead, on all ranks alike, for which the host waits for the
    device at every step; `skipped` counts these steps and is logged as `train/skipped_steps`. In precision 16-mixed the
    gradients are left to Lightning's scaler.
    """

    def __init__(self, non_finite: Literal["stop", "skip"] = "stop"):
        self.non_finite, self.skipped = non_finite, 0
        self.seen: list[tuple[Seen, Tensor]] = []  # batches since the last step and their losses
        self.unread: list[Step] = []
        self.batch: Any = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Pairs, batch_idx: int
    ) -> None:
        self.batch = batch

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self.seen.append((Seen.of(self.batch), loss.detach()))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        seen, self.seen = self.seen, []
        largest = torch.stack([loss.float() for _, loss in seen]).abs().max()
        if trainer.scaler is None:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            largest = largest.maximum(get_total_norm(gradients, float("inf")))
        made = Step(trainer.global_step, seen, largest)
        if self.non_finite == "skip":
            self._skip(trainer, pl_module, made)
            return
        self.unread.append(made)
        every: int = trainer.log_every_n_steps or MOST_UNREAD  # type: ignore[attr-defined]
        if (made.number + 1) % every == 0 or len(self.unread) >= MOST_UNREAD:
            self._read(trainer)

    def _skip(self, trainer: L.Trainer, pl_module: L.LightningModule, made: Step) -> None:
        if trainer.strategy.reduce_boolean_decision(bool(made.largest.isfinite())):
            return
        for parameter in pl_module.parameters():
            parameter.grad = None  # optimizers leave it alone, moments and weight decay included
        self.skipped += 1
        pl_module.log("train/skipped_steps", float(self.skipped))
        Plain(stderr=True).print(f"left out: {described(made)}", highlight=False)

    def _read(self, trainer: L.Trainer) -> None:
        """Raise a UserError if one of the unread steps was not finite on any rank; all ranks read together."""
        unread, self.unread = self.unread, []
        if not unread:
            return
        bad = ~torch.stack([made.largest for made in unread]).isfinite()
        on_ranks = trainer.strategy.reduce(bad.float(), reduce_op="sum")
        first = next((made for made, number in zip(unread, on_ranks.tolist(), strict=True) if number), None)
        if first is not None:
            raise UserError(f"{described(first)}; callbacks.guard.non_finite=skip leaves such batches out")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._read(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._read(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._read(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]


def described(made: Step) -> str:
    """Return the number of a step, what is not finite, and its batches."""
    losses = torch.stack([loss.float() for _, loss in made.batches])
    what = f"the loss is {losses.sum():g}" if not losses.isfinite().all() else "a gradient is not finite"
    return f"training step {made.number}: {what} on {'; '.join(named(seen) for seen, _ in made.batches)}"


def named(seen: Seen) -> str:
    """Return the image and step of the batch's pairs, or only of those whose stored features are not finite."""
    pairs = [f"{image} step {step}" for image, step in zip(seen.images.tolist(), seen.steps.tolist(), strict=True)]
    bad = [pair for pair, good in zip(pairs, seen.stored.isfinite().tolist(), strict=True) if not good]
    return f"image {', image '.join(bad or pairs)}" + " (stored features that are not finite)" * bool(bad)
