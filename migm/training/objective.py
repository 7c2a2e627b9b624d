"""Training objectives of a shortcut, in plain torch."""

from typing import Literal, Protocol, runtime_checkable

import torch
from torch import nn

from migm.bases.base import Base, Branch, image_rows
from migm.runtime.compiling import Fast, as_it_is
from migm.runtime.kinds import NotNegative, Positive
from migm.runtime.shapes import FeatureRows, Features, RowMask, Scalar
from migm.shortcuts.losses import Direction, masked_cosine, masked_kl, masked_mse
from migm.training.rollout import Rollout, Situation, predict
from migm.trajectories.dataset import Pairs

LossAndLog = tuple[Scalar, dict[str, Scalar]]


class Objective(Protocol):
    def __call__(self, shortcut: nn.Module, base: Base, batch: Pairs, iteration: int = 0) -> LossAndLog: ...


@runtime_checkable
class CompiledObjective(Protocol):
    """An objective whose functions can be compiled: `fast` is set by the training's runtime."""

    fast: Fast


class FeatureLoss:
    """mse_weight * MSE + kl_weight * T^2 * KL on the rows that are still masked (paper, section 3.3).

    `rows` "all" judges every row of the sequence, prompt included, as the released DiMOO code does.

    The KL divergence compares the logits of one guidance half at temperature T. `kl_direction` `teacher_student` is
    KL(teacher || student), as in the released code; `student_teacher` is the direction in the paper's appendix. With a
    `rollout`, the shortcut is judged after several of its own steps.

    Returns the loss and a log: MSE and KL, the MSE of predicting no change (`reuse_mse`) and a cosine, all means over
    the judged rows, and the number of these `rows`. `fast` compiles shortcut, head and loss as one function.
    """

    fast: Fast = staticmethod(as_it_is)

    def __init__(
        self,
        mse_weight: NotNegative = 1.0,
        kl_weight: NotNegative = 0.0,
        kl_temperature: Positive = 1.0,
        kl_direction: Direction = "teacher_student",
        rollout: Rollout | None = None,
        rows: Literal["masked", "all"] = "masked",
    ):
        if mse_weight + kl_weight == 0:
            raise ValueError(f"objective.mse_weight={mse_weight}, objective.kl_weight={kl_weight}: one must be above 0")
        self.mse_weight, self.kl_weight, self.rows = mse_weight, kl_weight, rows
        self.kl_temperature, self.rollout = kl_temperature, rollout
        self.kl_direction: Direction = kl_direction

    def __call__(self, shortcut: nn.Module, base: Base, batch: Pairs, iteration: int = 0) -> LossAndLog:
        if self.rollout:
            now, target = self.rollout(shortcut, base, batch, iteration, self.fast)
        else:
            now, target = Situation.of(batch, base), batch.target
        return self.fast(judged)(self, shortcut, base, now, target)

    def judge(self, shortcut: nn.Module, base: Base, now: Situation, target: Features) -> LossAndLog:
        """Return loss and log of the shortcut's next step from this situation, without waiting for the device."""
        predicted = predict(shortcut, base, now)
        predicted, target, before = (self._judged(x, now.branch) for x in (predicted, target, now.features))
        rows = now.masked if self.rows == "masked" else now.branch.mask
        if rows is None:
            rows = torch.ones(target.shape[:2], dtype=torch.bool, device=target.device)
        wide = target.float()  # once for all that compare with it
        mse = masked_mse(predicted, wide, rows)
        loss = self.mse_weight * mse
        with torch.no_grad():
            reuse = masked_mse(before, wide, rows)
            cosine = masked_cosine(predicted, wide, rows)
        log = {"feature_mse": mse.detach(), "reuse_mse": reuse, "feature_cosine": cosine, "rows": rows.sum().float()}
        if self.kl_weight:
            kl = self.divergence(base, predicted, target, rows)
            loss = loss + self.kl_weight * self.kl_temperature**2 * kl
            log["logit_kl"] = kl.detach()
        return loss, log

    def _judged(self, features: Features, branch: Branch) -> FeatureRows:
        return features if self.rows == "all" else image_rows(features, branch)

    def divergence(self, base: Base, predicted: FeatureRows, target: FeatureRows, judged: RowMask) -> Scalar:
        """Return the KL divergence of the token distributions of two features, mean over the judged rows."""
        at = None
        if self.rows == "masked" and base.spec.positions_per_row > 1:  # elsewhere row k is that of position k
            at = torch.arange(judged.shape[1], device=judged.device).expand_as(judged)
        student = base.head(predicted.to(base.dtype), at).float() / self.kl_temperature
        with torch.no_grad():
            teacher = base.head(target.to(base.dtype), at).float() / self.kl_temperature
        return masked_kl(student, teacher, judged, self.kl_direction)


def judged(objective: FeatureLoss, shortcut: nn.Module, base: Base, now: Situation, target: Features) -> LossAndLog:
    """Return `objective.judge`, as a function that is the same for all objectives: the compiler keeps one for each."""
    return objective.judge(shortcut, base, now, target)
