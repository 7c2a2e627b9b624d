"""Draw how far apart the steps of training pairs are, for networks that start from full steps."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from migm.runtime.shapes import PerImage
from migm.shortcuts.network import reads_full_steps


class Distances(NamedTuple):
    """The steps of pairs, counted from the step s that a prediction starts from."""

    gaps: PerImage  # from s to the target
    spans: PerImage  # from an earlier step to s; 0: there is none


@dataclass(frozen=True)
class Gaps:
    """Pairs (s, s + g) with g uniform in 1...`most`, as far as the trajectory reaches.

    With `earlier`, a pair also has the features of step s - d, with d uniform in 1...`most` + 1, the distances of full
    steps with up to `most` cheap ones in between. At s = 0 there is no earlier step, as after the first full step of a
    generation.
    """

    most: int = 1
    earlier: bool = False

    @classmethod
    def of(cls, network: nn.Module) -> "Gaps | None":
        """Return what a network learns from; None for one that is chained and learns from step to step."""
        if not reads_full_steps(network):
            return None
        return cls(int(getattr(network, "max_gap", 1)), getattr(network, "reads", "") == "two_full_steps")

    def within(self, num_steps: int) -> "Gaps":
        """Return the same for trajectories of so many steps, which may have no gap as long as `most`."""
        return replace(self, most=min(self.most, num_steps - 1))

    def code(self, s: PerImage, num_steps: int, generator: torch.Generator) -> PerImage:
        """Draw both distances for pairs that start at steps `s`, as one number each, 0 for g = 1 alone."""
        uniform = torch.rand((2, len(s)), generator=generator, dtype=torch.float64)
        gaps = below(uniform[0], (num_steps - 1 - s).clamp(max=self.most))
        return gaps + self.most * self._spans(uniform[1], s)

    def code_of(self, gap: int, s: PerImage) -> PerImage:
        """Return the numbers for pairs of this gap, with distances to earlier steps that are always the same."""
        uniform = torch.rand(len(s), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return gap - 1 + self.most * self._spans(uniform, s)

    def _spans(self, uniform: Float[Tensor, " b"], s: PerImage) -> PerImage:
        if not self.earlier:
            return torch.zeros_like(s)
        return (below(uniform, s.clamp(max=self.most + 1)) + 1).where(s > 0, 0)

    def distances(self, code: PerImage) -> Distances:
        """Return the distances that a number stands for."""
        return Distances(1 + code % self.most, code // self.most)


def below(uniform: Float[Tensor, " b"], bounds: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Return whole numbers from 0 to below the bounds, from uniform numbers in [0, 1)."""
    return (uniform * bounds).long()
