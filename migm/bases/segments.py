"""The two parts of a branch's sequences: the image, and all that stands beside it."""

import torch
from torch import Tensor

from migm.bases.base import Branch


def image_span(branch: Branch) -> Tensor:
    """Rows (copies * b, m) from the first image token to the last, what stands between them included."""
    first = branch.rows[:, :1]
    return first + torch.arange(int(branch.rows[0, -1] - first[0, 0]) + 1, device=first.device)


def other_rows(branch: Branch, num_rows: int) -> Tensor:
    """The rows (copies * b, p) of sequences of `num_rows` that are not in the image's span, padding included."""
    span = image_span(branch)
    inside = torch.zeros(len(span), num_rows, dtype=torch.int8, device=span.device).scatter(1, span, 1)
    return inside.sort(dim=1, stable=True).indices[:, : num_rows - span.shape[1]]
