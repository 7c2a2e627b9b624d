"""Guide without a classifier: conditional + scale * (conditional - unconditional)."""

import functools
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from migm.bases.base import Base
from migm.runtime.errors import UserError
from migm.sampling.noise import Step

On = Literal["features", "logits"]


class Guidance(Protocol):
    @property
    def on(self) -> On: ...

    def scale(self, step: int, num_steps: int) -> float: ...


@dataclass(frozen=True)
class Constant:
    """One guidance scale w for all steps; 0 is the conditional branch alone.

    Heads are affine, so w may be applied to the features at half the cost. With `on` "logits" it is applied after the
    head, in the logits' precision, as the published Lumina-DiMOO does.
    """

    guidance_scale: float
    on: On = "features"

    def scale(self, step: int, num_steps: int) -> float:
        return self.guidance_scale


@dataclass(frozen=True)
class Ramp(Constant):
    """A guidance scale that rises linearly from 0 at the first step to w at the last (MaskGIT v1.0)."""

    def scale(self, step: int, num_steps: int) -> float:
        return self.guidance_scale * step / max(num_steps - 1, 1)


def refuse_guidance(base: Base, guidance: Guidance | None) -> None:
    """Raise a UserError if guidance is to be applied before a head that is not affine."""
    if guidance is not None and guidance.on == "features" and not base.spec.affine_head:
        raise UserError(
            f"sampling.guidance.on=features: the head of {type(base).__name__} is not affine, so guidance before it is "
            "another one; set sampling.guidance.on=logits"
        )


Scale = float | Float[Tensor, "b 1 1"]  # a tensor if the rows are at different steps


def scale_at(guidance: Guidance | None, index: Step, num_steps: int) -> Scale:
    """Return the scale at a step, or at the step of every row; 0 without guidance."""
    if guidance is None:
        return 0.0
    if isinstance(index, Tensor) and index.ndim:
        return scales(guidance, num_steps, index.device)[index][..., None]
    return guidance.scale(int(index), num_steps)


@functools.cache
def scales(guidance: Guidance, num_steps: int, device: torch.device) -> Float[Tensor, " n"]:
    """Return the scale of every step, kept on the device."""
    with torch.inference_mode(False):  # gradients need it too
        return torch.tensor([guidance.scale(step, num_steps) for step in range(num_steps)], device=device)


def combine(
    conditional: Float[Tensor, "b k c"], unconditional: Float[Tensor, "b k c"], scale: Scale
) -> Float[Tensor, "b k c"]:
    """Return (1 + scale) * conditional - scale * unconditional, computed in at least float32."""
    wide = conditional.float() if conditional.dtype.itemsize < 4 else conditional
    if isinstance(scale, Tensor):
        scale = scale.to(wide.dtype)
        return (wide * (1 + scale) - unconditional * scale).to(conditional.dtype)
    return (wide * (1 + scale)).sub_(unconditional, alpha=scale).to(conditional.dtype)
