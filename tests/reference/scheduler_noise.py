"""The random numbers of the scheduler that aMUSEd and Meissonic share, as recorded."""

import torch
from torch import Tensor

from migm.sampling.noise import SELECT


class RecordedScheduler:
    """Noise out of a run's tensors: `exponential` of the draw, which is argmax(p / e), and `uniform` of the selection.

    Their names begin with `prefix`, by default that of the step: `step00.`.
    """

    def __init__(self, tensors: dict[str, Tensor], prefix: str | None = None):
        self.tensors, self.prefix = tensors, prefix

    def gumbel(self, purpose, step, positions, width=None, dtype=torch.float64):
        prefix = f"step{step:02d}." if self.prefix is None else self.prefix
        if purpose == SELECT:
            if f"{prefix}uniform" not in self.tensors:  # the last step selects nothing
                return torch.zeros(positions.shape, dtype=dtype)
            uniform = self.tensors[f"{prefix}uniform"].gather(1, positions).to(dtype)
            return -(-uniform.clamp(min=1e-20).log()).clamp(min=1e-20).log()
        exponential = self.tensors[f"{prefix}exponential"].double()
        return -exponential.gather(1, positions[..., None].expand(-1, -1, width)).log().to(dtype)
