"""Losses of a predicted feature against the true one."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, kl_div

Direction = Literal["teacher_student", "student_teacher"]


def masked_mse(predicted: Tensor, target: Tensor, masked: Tensor) -> Tensor:
    """Mean squared error over the still masked rows and all channels; (b, l, c), masked (b, l) -> scalar.

    Revealed and class rows are never supervised (docs/originals/maskgit.md, Training loss).
    """
    weight = masked[..., None].to(torch.float32)
    error = (predicted.float() - target.float()).square() * weight
    return error.sum() / (weight.sum() * predicted.shape[-1]).clamp(min=1)


def masked_cosine(predicted: Tensor, target: Tensor, masked: Tensor) -> Tensor:
    """Mean cosine similarity over the still masked rows; shapes as `masked_mse`."""
    similarity = cosine_similarity(predicted.float(), target.float(), dim=-1)
    return (similarity * masked).sum() / masked.sum().clamp(min=1)


def masked_kl(student: Tensor, teacher: Tensor, masked: Tensor, direction: Direction = "teacher_student") -> Tensor:
    """Mean KL divergence over the still masked rows; logits (b, l, v), masked (b, l) -> scalar.

    `teacher_student` is KL(teacher || student), `student_teacher` the other way round.
    """
    ours, theirs = student.log_softmax(-1), teacher.log_softmax(-1)
    first, second = (theirs, ours) if direction == "teacher_student" else (ours, theirs)
    divergence = kl_div(second, first, log_target=True, reduction="none").sum(-1)
    return (divergence * masked).sum() / masked.sum().clamp(min=1)
