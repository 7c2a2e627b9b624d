"""What a shortcut is trained to do, in plain torch."""

from typing import Protocol

import torch
from torch import Tensor, nn

from migm.bases.base import Base
from migm.shortcuts.losses import Direction, masked_cosine, masked_kl, masked_mse
from migm.training.rollout import Rollout, Situation, predict
from migm.trajectories.dataset import Pairs


class Objective(Protocol):
    def __call__(
        self, shortcut: nn.Module, base: Base, batch: Pairs, iteration: int = 0
    ) -> tuple[Tensor, dict[str, Tensor]]: ...


class FeatureLoss:
    """mse_weight * MSE + kl_weight * T^2 * KL on the rows that are still masked (paper, section 3.3).

    The KL divergence compares the logits of one guidance half at temperature T. `kl_direction`
    `teacher_student` is KL(teacher || student), the released code's, `student_teacher` the one
    in the paper's appendix. With a `rollout`, the shortcut is judged after several steps of its own.

    Returns the loss and what to log: the same errors of `reuse`, which predicts no change, and a cosine.
    """

    def __init__(
        self,
        mse_weight: float = 1.0,
        kl_weight: float = 0.0,
        kl_temperature: float = 1.0,
        kl_direction: Direction = "teacher_student",
        rollout: Rollout | None = None,
    ):
        if mse_weight < 0 or kl_weight < 0 or mse_weight + kl_weight == 0:
            raise ValueError(
                f"objective.mse_weight={mse_weight} and objective.kl_weight={kl_weight} "
                "must be at least 0, and one of them above"
            )
        if kl_temperature <= 0:
            raise ValueError(f"objective.kl_temperature={kl_temperature} must be above 0")
        if kl_direction not in ("teacher_student", "student_teacher"):
            raise ValueError(
                f"objective.kl_direction={kl_direction} is unknown; one of teacher_student, student_teacher"
            )
        self.mse_weight, self.kl_weight = mse_weight, kl_weight
        self.kl_temperature, self.rollout = kl_temperature, rollout
        self.kl_direction: Direction = kl_direction

    def __call__(
        self, shortcut: nn.Module, base: Base, batch: Pairs, iteration: int = 0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.rollout:
            now, target = self.rollout(shortcut, base, batch, iteration)
        else:
            now, target = Situation.of(batch, base), batch.target
        predicted = predict(shortcut, base, now)
        first, last = base.spec.image_token_rows
        rows = [x[:, first:last] for x in (predicted, target, now.features)]
        mse = masked_mse(rows[0], rows[1], now.masked)
        loss = self.mse_weight * mse
        with torch.no_grad():
            reuse = masked_mse(rows[2], rows[1], now.masked)
            cosine = masked_cosine(rows[0], rows[1], now.masked)
        log = {"feature_mse": mse.detach(), "reuse_mse": reuse, "feature_cosine": cosine}
        if self.kl_weight:
            kl = self.divergence(base, predicted, target, now.masked)
            loss = loss + self.kl_weight * self.kl_temperature**2 * kl
            log["logit_kl"] = kl.detach()
        return loss, log

    def divergence(self, base: Base, predicted: Tensor, target: Tensor, masked: Tensor) -> Tensor:
        """KL of the two features' token distributions, mean over the masked rows."""
        student = base.head(predicted.to(base.dtype)).float() / self.kl_temperature
        with torch.no_grad():
            teacher = base.head(target.to(base.dtype)).float() / self.kl_temperature
        return masked_kl(student, teacher, masked, self.kl_direction)
