"""The divergence of token distributions of one guidance half."""

from dataclasses import dataclass

import torch

from migm.runtime.kinds import NotNegative, Positive
from migm.runtime.shapes import Scalar
from migm.shortcuts.losses import Direction, masked_kl
from migm.training.terms.term import PredictedRows


@dataclass(frozen=True)
class TokenKL:
    """KL divergence of the logits of single guidance halves at a temperature T, mean over the judged rows.

    It counts by weight * T^2. `direction` `teacher_student` is KL(teacher || student), as in the released code;
    `student_teacher` is the direction in the paper's appendix.
    """

    kl_weight: NotNegative = 0.1
    temperature: Positive = 1.0
    direction: Direction = "teacher_student"

    @property
    def weight(self) -> float:
        return self.kl_weight * self.temperature**2

    def value(self, seen: PredictedRows) -> Scalar:
        base, at = seen.base, None
        if not seen.whole and base.spec.positions_per_row > 1:  # elsewhere row k is that of position k
            at = torch.arange(seen.rows.shape[1], device=seen.rows.device).expand_as(seen.rows)
        student = base.head(seen.features.to(base.dtype), at).float() / self.temperature
        with torch.no_grad():
            teacher = base.head(seen.target.to(base.dtype), at).float() / self.temperature
        return masked_kl(student, teacher, seen.rows, self.direction)
