"""Split the sequences of a branch into the image and the remaining rows."""

import torch
from torch import Tensor

from migm.bases.base import Branch


def image_span(branch: Branch) -> Tensor:
    """Return the rows (copies * b, m) from the first image token to the last, including other tokens between them."""
    first = branch.rows[:, :1]
    return first + torch.arange(int(branch.rows[0, -1] - first[0, 0]) + 1, device=first.device)


def other_rows(branch: Branch, num_rows: int) -> Tensor:
    """Return the rows (copies * b, p) outside the image's span, padding included, of sequences of `num_rows`."""
    span = image_span(branch)
    inside = torch.zeros(len(span), num_rows, dtype=torch.int8, device=span.device).scatter(1, span, 1)
    return inside.sort(dim=1, stable=True).indices[:, : num_rows - span.shape[1]]
