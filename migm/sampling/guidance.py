"""Guide without a classifier: conditional + scale * (conditional - unconditional)."""

from dataclasses import dataclass
from typing import Literal, Protocol

from jaxtyping import Float
from torch import Tensor

from migm.bases.base import Base
from migm.runtime.errors import UserError

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


def combine(
    conditional: Float[Tensor, "b k c"], unconditional: Float[Tensor, "b k c"], scale: float
) -> Float[Tensor, "b k c"]:
    """Return (1 + scale) * conditional - scale * unconditional, computed in at least float32."""
    wide = conditional.float() if conditional.dtype.itemsize < 4 else conditional
    return (wide * (1 + scale)).sub_(unconditional, alpha=scale).to(conditional.dtype)
