"""Counter-based noise: a pure function of (seed, image, step, position), the same on every device.

An image gets the same noise at any batch size, number of ranks or resume, and in every method. No generator has to be
kept or restored.
"""

from copy import copy
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from migm.runtime.shapes import Positions

DRAW, SELECT = 0, 1  # the purposes of noise at every step
ORDER = -1  # that of a generation's order; those below 0, also of bases, are asked for once, at step 0
Step = int | Int[Tensor, "b 1"]  # a tensor if the rows are at different steps


class Noise(Protocol):
    """Noise for draws and selections."""

    def uniform(
        self, purpose: int, step: Step, positions: Positions, width: int | None = None
    ) -> Float[Tensor, "b k *width"]: ...

    def gumbel(
        self,
        purpose: int,
        step: Step,
        positions: Positions,
        width: int | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Float[Tensor, "b k *width"]: ...


def _mix(x: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """Apply the finaliser of SplitMix64 (Steele et al. 2014) to int64, whose products wrap as unsigned ones do."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & (1 << 33) - 1)


def to_gumbel(uniform: Float[Tensor, "*any"], dtype: torch.dtype) -> Float[Tensor, "*any"]:
    """Turn uniforms in [0, 1) into standard Gumbel noise, computed in `dtype` throughout.

    The dtype is part of a sampler: the largest bfloat16 uniform is 255/256, which gives 5.5. A uniform of 0 gives -3.8;
    values that round to 1 count as 0 (docs/originals/dimoo.md, Gumbel noise).
    """
    u = uniform.to(dtype)
    u = u.where(u < 1, 0)
    return -torch.log(-torch.log(u + 1e-20) + 1e-20)


GOLDEN = -0x61C8864680B583EB


class KeyedNoise:
    """Noise of a batch of images; `images` are their numbers in the run of `seed`."""

    def __init__(self, seed: int, images: Int[Tensor, " b"]):
        self.keys = _mix(_mix(images.long() * GOLDEN + seed) + GOLDEN)[:, None]  # (b, 1)
        # A tensor, since the compiler for CUDA takes products with numbers of a range for 32-bit indices.
        self.golden = torch.full((), GOLDEN, device=images.device)

    def of(self, keys: Int[Tensor, "b 1"]) -> "KeyedNoise":
        """Return the noise of other images, or of several rows for each image."""
        other = copy(self)
        other.keys = keys
        return other

    def table(self, purpose: int, num_steps: int, num_tokens: int) -> Float[Tensor, "n b l"]:
        """Return the uniform values of all steps and positions."""
        images, device = len(self.keys), self.keys.device
        steps = torch.arange(num_steps, device=device).repeat_interleave(images)[:, None]
        positions = torch.arange(num_tokens, device=device).expand(len(steps), -1)
        values = self.of(self.keys.repeat(num_steps, 1)).uniform(purpose, steps, positions)
        return values.unflatten(0, (num_steps, images))

    def uniform(
        self, purpose: int, step: Step, positions: Positions, width: int | None = None
    ) -> Float[Tensor, "b k *width"]:
        """Return float64 values in (0, 1), with a `width` one value for each vocabulary entry."""
        stream = _mix(self.keys + (2 * step + purpose + 1))
        bits = _mix(stream + positions * 0x632BE59BD9B4E019)
        if width is not None:
            entries = torch.arange(1, width + 1, device=positions.device)
            bits = _mix(bits[..., None] + entries * self.golden)
        # 52 bits: with 53 bits the added half would round the largest value up to 1.
        return ((bits >> 12 & (1 << 52) - 1).double() + 0.5) * 2.0**-52

    def gumbel(
        self,
        purpose: int,
        step: Step,
        positions: Positions,
        width: int | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Float[Tensor, "b k *width"]:
        """Return standard Gumbel noise in the shape of `uniform`."""
        return to_gumbel(self.uniform(purpose, step, positions, width), dtype)


class DrawnAhead:
    """Noise equal to another; where each position needs one value, that of all steps and positions is drawn at once.

    A few large operators take the place of many small ones in every step.
    """

    def __init__(self, noise: KeyedNoise, num_steps: int, num_tokens: int):
        self.noise, self.num_steps, self.num_tokens = noise, num_steps, num_tokens
        self.tables: dict[tuple[int, torch.dtype | None], Float[Tensor, "n b l"]] = {}

    def uniform(
        self, purpose: int, step: Step, positions: Positions, width: int | None = None
    ) -> Float[Tensor, "b k *width"]:
        if width is not None or purpose < 0:
            return self.noise.uniform(purpose, step, positions, width)
        return self._table(purpose, None)[step].gather(1, positions)

    def gumbel(
        self,
        purpose: int,
        step: Step,
        positions: Positions,
        width: int | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Float[Tensor, "b k *width"]:
        if width is not None:
            return self.noise.gumbel(purpose, step, positions, width, dtype)
        return self._table(purpose, dtype)[step].gather(1, positions)

    def _table(self, purpose: int, dtype: torch.dtype | None) -> Float[Tensor, "n b l"]:
        """Return uniform values, or Gumbel noise of this dtype."""
        if (purpose, dtype) not in self.tables:
            values = self.noise.table(purpose, self.num_steps, self.num_tokens)
            self.tables[purpose, dtype] = values if dtype is None else to_gumbel(values, dtype)
        return self.tables[purpose, dtype]
