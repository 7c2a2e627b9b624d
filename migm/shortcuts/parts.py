"""What the shortcut networks share."""

import math

import torch
from torch import Tensor, nn

from migm.runtime.errors import UserError


class TimeEmbedder(nn.Module):
    """Sinusoid of 1000 * mask ratio (128 cosines, then 128 sines), then a two-layer MLP."""

    frequencies = 128

    def __init__(self, channels: int):
        super().__init__()
        hidden = round(math.sqrt(2 * self.frequencies * channels))
        self.mlp = nn.Sequential(nn.Linear(2 * self.frequencies, hidden), nn.SiLU(), nn.Linear(hidden, channels))

    def sinusoid(self, mask_ratio: Tensor) -> Tensor:
        """mask_ratio (b,) -> float32 (b, 256)."""
        k = torch.arange(self.frequencies, device=mask_ratio.device, dtype=torch.float32)
        angles = 1000 * mask_ratio.float()[:, None] * torch.exp(-math.log(10000) * k / self.frequencies)
        return torch.cat([angles.cos(), angles.sin()], -1)

    def forward(self, mask_ratio: Tensor) -> Tensor:
        return self.mlp(self.sinusoid(mask_ratio).to(next(self.parameters()).dtype))


def inner_width(channels: int, bottleneck_ratio: int, num_heads: int) -> int:
    """channels / R, which R and then the heads have to divide."""
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
