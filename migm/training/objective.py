"""What a shortcut is trained to do, in plain torch."""

from typing import Protocol

import torch
from torch import Tensor, nn

from migm.bases.base import Base
from migm.shortcuts.losses import masked_cosine, masked_mse
from migm.trajectories.dataset import Pairs


class Objective(Protocol):
    def __call__(self, shortcut: nn.Module, base: Base, batch: Pairs) -> tuple[Tensor, dict[str, Tensor]]: ...


class FeatureMSE:
    """One step ahead: mean squared error on the rows that are still masked (paper, equation of section 3.3).

    Returns the loss and what to log: the same error of `reuse`, which predicts no change, and cosines.
    """

    def __call__(self, shortcut: nn.Module, base: Base, batch: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        predicted = predict(shortcut, base, batch)
        first, last = base.spec.image_token_rows
        rows = [x[:, first:last] for x in (predicted, batch.target, batch.features)]
        loss = masked_mse(rows[0], rows[1], batch.masked)
        with torch.no_grad():
            reuse = masked_mse(rows[2], rows[1], batch.masked)
            cosine = masked_cosine(rows[0], rows[1], batch.masked)
            log = {"feature_mse": loss.detach(), "reuse_mse": reuse, "feature_cosine": cosine}
        return loss, log


def predict(shortcut: nn.Module, base: Base, batch: Pairs) -> Tensor:
    """The shortcut's features of step s + 1 (b, t, c)."""
    dtype = next(shortcut.parameters()).dtype
    with torch.no_grad():
        new = base.control(batch.new_tokens, batch.new_positions)
    new = new._replace(embeddings=new.embeddings.to(dtype), mask=batch.new_mask)
    return shortcut(batch.features.to(dtype), new, batch.mask_ratio)
