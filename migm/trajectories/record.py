"""Record a generation as a trajectory: features of every step, order and final tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from migm.bases.base import Inputs, StepRecord
from migm.runtime.errors import UserError
from migm.sampling.sampler import Sampler


@dataclass(frozen=True)
class Trajectories:
    """A batch of recorded generations.

    `features` (b, copies, n, t, c) are in the form of `packed`; t = c = 0 if they were not kept. `tokens` (b, l) are
    final ids, and `order` (b, l) is the step that revealed each token. `conditions` (b, copies, q) are the inputs as
    the base encodes them, -1 at padding. `images` (b,) are the numbers of the images in the run. Rows beyond the end
    of a shorter sequence mean nothing.
    """

    features: Tensor
    tokens: Tensor
    order: Tensor
    conditions: Tensor
    images: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return vars(self)

    @classmethod
    def join(cls, parts: Sequence["Trajectories"]) -> "Trajectories":
        """Return all images of `parts`, padded to the longest sequence."""
        columns = {name: [vars(part)[name] for part in parts] for name in vars(parts[0])}
        columns["features"] = padded(columns["features"], -2, 0)
        columns["conditions"] = padded(columns["conditions"], -1, -1)
        return cls(**{name: torch.cat(tensors) for name, tensors in columns.items()})


def padded(tensors: Sequence[Tensor], dim: int, value: int) -> list[Tensor]:
    """Return the tensors, padded at the end with `value` to one size along `dim`, a negative index."""
    size, after = max(tensor.shape[dim] for tensor in tensors), [0, 0] * (-1 - dim)
    return [pad(tensor, [*after, 0, size - tensor.shape[dim]], value=value) for tensor in tensors]


def packed(features: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert features (..., c) to the stored form in `dtype`.

    For int8 the stored form is (..., c + 4): the last four bytes of a row are its scale in float32.
    """
    if dtype != torch.int8:
        return features.to(dtype)
    scale = features.float().abs().amax(-1, keepdim=True) / 127
    rounded = (features.float() / scale.clamp(min=1e-30)).round().to(torch.int8)
    return torch.cat([rounded, scale.view(torch.int8)], -1)


def unpacked(features: Tensor) -> Tensor:
    """Convert the stored form back to features (..., c); those of int8 become bfloat16."""
    if features.dtype != torch.int8:
        return features
    return (features[..., :-4] * features[..., -4:].contiguous().view(torch.float32)).bfloat16()


class Recorder:
    """An observer that records a generation for training, with features in `dtype`, or without features if None."""

    def __init__(self, dtype: torch.dtype | None = torch.bfloat16):
        self.dtype = dtype
        self.features: list[Tensor] = []
        self.order: Tensor | None = None
        self.tokens: Tensor | None = None
        self.conditions = torch.empty(0)
        self.num_steps = 0

    def on_step(self, record: StepRecord) -> None:
        b = len(record.tokens)
        halves = [f.unflatten(0, (-1, b)) for f in record.features]
        if self.dtype is None:
            halves = [half[:, :, :0, :0] for half in halves]
        stacked = torch.cat(padded(halves, -2, 0))  # (copies, b, t, c)
        self.features.append(packed(stacked, self.dtype or stacked.dtype).to("cpu", non_blocking=True))
        if self.order is None:
            self.order = torch.full_like(record.tokens, -1, dtype=torch.int16)
            conditions = [branch.condition.unflatten(0, (-1, b)) for branch in record.branches]
            self.conditions = torch.cat(padded(conditions, -1, -1)).transpose(0, 1)
        self.order.scatter_(1, record.new_positions, record.index)
        self.tokens, self.num_steps = record.tokens, record.num_steps

    def trajectories(self, images: Tensor) -> Trajectories:
        """Return the record of one whole generation, of the images numbered `images`; UserError if it ended early."""
        if self.order is None or self.tokens is None:
            raise RuntimeError("nothing was recorded: pass the recorder to sampler.tokens(..., observers=[recorder])")
        if len(self.features) < self.num_steps:
            raise UserError(
                f"image {int(images[0])} ended after {len(self.features)} of sampling.num_steps={self.num_steps} "
                "steps and a trajectory needs all: ties do that by cutoff, choose sampling.select.rule=count"
            )
        if self.tokens.is_cuda:
            torch.cuda.synchronize(self.tokens.device)  # copies to the CPU may still be running
        features = torch.stack(self.features, 2).transpose(0, 1).contiguous()
        ids = [x.to("cpu", torch.int32).contiguous() for x in (self.tokens, self.conditions)]
        return Trajectories(features, ids[0], self.order.cpu(), ids[1], images.cpu().long())


def record(
    sampler: Sampler,
    images: Tensor,
    seed: int,
    inputs: Callable[[Tensor], Inputs],
    batch_size: int,
    dtype: torch.dtype | None,
) -> Trajectories:
    """Generate the images numbered `images` in batches and return trajectories, with features in `dtype`, if any."""
    parts = []
    for batch in images.split(batch_size):
        recorder = Recorder(dtype)
        sampler.tokens(inputs(batch), sampler.noise(seed, batch), [recorder])
        parts.append(recorder.trajectories(batch))
    return Trajectories.join(parts)
