"""Compute losses between predicted and true features, or between their logits."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, kl_div

Direction = Literal["teacher_student", "student_teacher"]


def masked_mse(
    predicted: Float[Tensor, "b r c"], target: Float[Tensor, "b r c"], masked: Bool[Tensor, "b r"]
) -> Float[Tensor, ""]:
    """Return the mean squared error over the rows that are still masked and all channels.

    Revealed and class rows are never supervised (docs/originals/maskgit.md, Training loss).
    """
    weight = masked[..., None].to(torch.float32)
    error = (predicted.float() - target.float()).square() * weight
    return error.sum() / (weight.sum() * predicted.shape[-1]).clamp(min=1)


def masked_cosine(
    predicted: Float[Tensor, "b r c"], target: Float[Tensor, "b r c"], masked: Bool[Tensor, "b r"]
) -> Float[Tensor, ""]:
    """Return the mean cosine similarity over the rows that are still masked."""
    similarity = cosine_similarity(predicted.float(), target.float(), dim=-1)
    return (similarity * masked).sum() / masked.sum().clamp(min=1)


def masked_kl(
    student: Float[Tensor, "b r *s v"],
    teacher: Float[Tensor, "b r *s v"],
    masked: Bool[Tensor, "b r"],
    direction: Direction = "teacher_student",
) -> Float[Tensor, ""]:
    """Return the mean KL divergence of logits over the rows that are still masked.

    `teacher_student` is KL(teacher || student), `student_teacher` is KL(student || teacher). A row of several positions
    counts by their mean.
    """
    ours, theirs = student.log_softmax(-1), teacher.log_softmax(-1)
    first, second = (theirs, ours) if direction == "teacher_student" else (ours, theirs)
    divergence = kl_div(second, first, log_target=True, reduction="none").sum(-1)
    if divergence.ndim > masked.ndim:
        divergence = divergence.mean(-1)
    return (divergence * masked).sum() / masked.sum().clamp(min=1)
