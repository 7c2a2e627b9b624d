"""Counter-based noise: a pure function of (seed, image, step, position), alike on every device.

An image gets the same noise at any batch size, rank count or resume, and every method sees
the same noise for the same image. No generator has to be kept or restored.
"""

from typing import Protocol

import torch
from torch import Tensor

DRAW, SELECT = 0, 1  # the loop's two uses of noise
Step = int | Tensor  # (b, 1) where every row is at a step of its own


class Noise(Protocol):
    """What draws and selections may ask for; positions are (b, k)."""

    def uniform(self, purpose: int, step: Step, positions: Tensor, width: int | None = None) -> Tensor: ...

    def gumbel(
        self, purpose: int, step: Step, positions: Tensor, width: int | None = None, dtype: torch.dtype = torch.float64
    ) -> Tensor: ...


def _mix(x: Tensor) -> Tensor:
    """Finaliser of SplitMix64 (Steele et al. 2014) on int64, whose products wrap as unsigned ones do."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & (1 << 33) - 1)


def to_gumbel(uniform: Tensor, dtype: torch.dtype) -> Tensor:
    """Uniforms in [0, 1) -> standard Gumbel noise, all of it computed in `dtype`.

    The dtype is part of a sampler: bfloat16 uniforms end at 255/256, so that their noise ends at 5.5, and
    0, which is also what rounds to 1, gives -3.8 (docs/originals/dimoo.md, Gumbel noise).
    """
    u = uniform.to(dtype)
    u = u.where(u < 1, 0)
    return -torch.log(-torch.log(u + 1e-20) + 1e-20)


class KeyedNoise:
    """Noise of a batch of images, `images` (b,) being their indices in the run of `seed`."""

    def __init__(self, seed: int, images: Tensor):
        golden = -0x61C8864680B583EB
        self.keys = _mix(_mix(images.long() * golden + seed) + golden)[:, None]  # (b, 1)

    def uniform(self, purpose: int, step: Step, positions: Tensor, width: int | None = None) -> Tensor:
        """float64 in (0, 1), (b, k), or (b, k, width) with one value for each vocabulary entry."""
        stream = _mix(self.keys + (2 * step + purpose + 1))
        bits = _mix(stream + positions * 0x632BE59BD9B4E019)
        if width is not None:
            entries = torch.arange(1, width + 1, device=positions.device)
            bits = _mix(bits[..., None] + entries * -0x61C8864680B583EB)
        # 52 bits: with 53 the added half would round the largest value up to 1.
        return ((bits >> 12 & (1 << 52) - 1).double() + 0.5) * 2.0**-52

    def gumbel(
        self, purpose: int, step: Step, positions: Tensor, width: int | None = None, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """Standard Gumbel noise, shaped as `uniform`."""
        return to_gumbel(self.uniform(purpose, step, positions, width), dtype)
