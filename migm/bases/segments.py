"""Split the sequences of a branch into the image and the remaining rows."""

import torch
from torch import Tensor

from migm.bases.base import Branch


def image_span(branch: Branch) -> Tensor:
    """Return the blocks' rows (copies * b, m) from the first image token to the last, with others between them.

    The host waits for the device, which belongs before the loop.
    """
    first = branch.in_blocks[:, :1]
    return first + torch.arange(int(branch.in_blocks[0, -1] - first[0, 0]) + 1, device=first.device)


def other_rows(span: Tensor, num_rows: int) -> Tensor:
    """Return the rows (copies * b, p) outside the image's span, padding included, of `num_rows` rows of the blocks."""
    inside = torch.zeros(len(span), num_rows, dtype=torch.int8, device=span.device).scatter(1, span, 1)
    return inside.sort(dim=1, stable=True).indices[:, : num_rows - span.shape[1]]


def distinct_rows(rows: Tensor, span: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return image rows (copies * b, m), each once, with all of `rows` (copies * b, k), and a mask that says which.

    `rows` of positions that share one are equal. How many differ is not the same for every sequence: others fill up to
    m, which is at most the number of all image rows, the `span`. `num_rows` is that of the blocks.
    """
    asked = torch.zeros(len(rows), num_rows, dtype=torch.int8, device=rows.device).scatter(1, rows, 1)
    ranked = asked.gather(1, span).sort(dim=1, descending=True, stable=True)
    most = min(rows.shape[1], span.shape[1])
    return span.gather(1, ranked.indices[:, :most]), ranked.values[:, :most].bool()
