"""An observer that turns one generation into trajectories: features of every step, order, final tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

from migm.bases.base import StepRecord


@dataclass(frozen=True)
class Trajectories:
    """A batch of recorded generations.

    `features` (b, copies, n, t, c); `tokens` (b, l) final ids; `order` (b, l) the step that
    revealed each token; `labels` (b,) and `images` (b,), the images' indices in the run.
    """

    features: Tensor
    tokens: Tensor
    order: Tensor
    labels: Tensor
    images: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return vars(self)


class Recorder:
    """Keeps what a shortcut trains on; bases that stack both guidance halves in one branch."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16):
        self.dtype = dtype
        self.features: list[Tensor] = []
        self.order: Tensor | None = None
        self.tokens: Tensor | None = None

    def on_step(self, record: StepRecord) -> None:
        b = len(record.tokens)
        stacked = torch.cat([f.unflatten(0, (-1, b)) for f in record.features])  # (copies, b, t, c)
        self.features.append(stacked.to("cpu", self.dtype, non_blocking=True))
        if self.order is None:
            self.order = torch.full_like(record.tokens, -1, dtype=torch.int16)
        self.order.scatter_(1, record.new_positions, record.index)
        self.tokens = record.tokens

    def trajectories(self, labels: Tensor, images: Tensor) -> Trajectories:
        """What was recorded of one whole generation."""
        if self.order is None or self.tokens is None:
            raise RuntimeError("nothing was recorded: pass the recorder to generate(..., observers=[recorder])")
        if self.tokens.is_cuda:
            torch.cuda.synchronize(self.tokens.device)  # the copies of the last steps may still be under way
        features = torch.stack(self.features, 2).transpose(0, 1).contiguous()
        return Trajectories(
            features, self.tokens.to("cpu", torch.int32), self.order.cpu(), labels.cpu().long(), images.cpu().long()
        )
