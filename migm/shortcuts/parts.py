"""Define the parts that the shortcut networks share."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from migm.runtime.errors import UserError
from migm.runtime.shapes import Ratio


class TimeEmbedder(nn.Module):
    """The sinusoid of 1000 * mask ratio (128 cosines, then 128 sines), then a two-layer MLP."""

    frequencies = 128

    def __init__(self, channels: int):
        super().__init__()
        hidden = round(math.sqrt(2 * self.frequencies * channels))
        self.mlp = nn.Sequential(nn.Linear(2 * self.frequencies, hidden), nn.SiLU(), nn.Linear(hidden, channels))

    def sinusoid(self, mask_ratio: Ratio) -> Float32[Tensor, "b 256"]:
        k = torch.arange(self.frequencies, device=mask_ratio.device, dtype=torch.float32)
        angles = 1000 * mask_ratio.float()[:, None] * torch.exp(-math.log(10000) * k / self.frequencies)
        return torch.cat([angles.cos(), angles.sin()], -1)

    def forward(self, mask_ratio: Ratio) -> Float[Tensor, "b c"]:
        return self.mlp(self.sinusoid(mask_ratio).to(next(self.parameters()).dtype))


def modulated(x: Float[Tensor, "b t c"], by: Float[Tensor, "b c2"]) -> Float[Tensor, "b t c"]:
    """Scale and shift all rows by an embedding of the time, of twice their channels (adaLN)."""
    scale, shift = by[:, None].chunk(2, -1)
    return x * (1 + scale) + shift


def inner_width(channels: int, bottleneck_ratio: int, num_heads: int) -> int:
    """Return channels / R; UserError if R does not divide the channels, or `num_heads` the result."""
    if channels % bottleneck_ratio:
        raise UserError(
            f"shortcut.bottleneck_ratio={bottleneck_ratio} must divide the base's {channels} channels without rest"
        )
    inner = channels // bottleneck_ratio
    if inner % num_heads:
        raise UserError(
            f"shortcut.num_heads={num_heads} must divide the inner width {inner} "
            f"(= {channels} channels / bottleneck_ratio {bottleneck_ratio})"
        )
    return inner


def published_sizes(tensors: Mapping[str, Tensor], mark: str) -> dict[str, Any] | None:
    """Return the constructor arguments that follow from the tensors of a published state dict.

    The length of the tensor `mark` is the inner width. Returns None if `mark` or the blocks are missing
    (docs/originals/maskgit.md, Shortcut keys). At R = 1 a state dict looks the same with and without cross attention;
    the result is then with cross attention.
    """
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    if not depth or mark not in tensors:
        return None
    inner = len(tensors[mark])
    channels = len(tensors["proj_out.weight"]) if "proj_out.weight" in tensors else inner
    return {
        "channels": channels,
        "bottleneck_ratio": round(channels / inner),
        "depth": depth,
        "time": any(name.startswith("time_embedder.") for name in tensors),
        "cross_attention": channels == inner or "new_token_proj_in.weight" in tensors,
    }
