"""The random numbers of a recorded MaskGIT run."""

import torch
from torch import Tensor

from migm.sampling.noise import SELECT


class Recorded:
    """Noise out of a run's tensors; its categorical draw is argmax(p / e), so the Gumbel noise is -log(e)."""

    def __init__(self, tensors: dict[str, Tensor], prefix: str = ""):
        self.tensors, self.prefix = tensors, prefix

    def gumbel(self, purpose, step, positions, width=None, dtype=torch.float64):
        step = f"{self.prefix}step{step:02d}"
        if purpose == SELECT:
            return self.tensors[f"{step}.gumbel"].gather(1, positions).to(dtype)
        e = self.tensors[f"{step}.exponential"].double()
        return -e.gather(1, positions[..., None].expand(-1, -1, width)).log().to(dtype)
