"""Classifier-free guidance: conditional + scale * (conditional - unconditional)."""

from typing import Literal, Protocol

from torch import Tensor

On = Literal["features", "logits"]


class Guidance(Protocol):
    on: On

    def scale(self, step: int, num_steps: int) -> float: ...


class Constant:
    """The same guidance scale w at every step; 0 is the conditional branch alone.

    Heads are affine, so w may be applied to the features at half the cost; `on` "logits" does it
    behind the head, in the logits' own precision, as the published Lumina-DiMOO does.
    """

    def __init__(self, guidance_scale: float, on: On = "features"):
        self.guidance_scale, self.on = guidance_scale, on

    def scale(self, step: int, num_steps: int) -> float:
        return self.guidance_scale


class Ramp(Constant):
    """From 0 at the first step linearly to w at the last (MaskGIT v1.0)."""

    def scale(self, step: int, num_steps: int) -> float:
        return self.guidance_scale * step / max(num_steps - 1, 1)


def combine(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """(1 + scale) * conditional - scale * unconditional, computed in at least float32."""
    wide = conditional.float() if conditional.dtype.itemsize < 4 else conditional
    return (wide * (1 + scale)).sub_(unconditional, alpha=scale).to(conditional.dtype)
