"""Reuse: cheap steps use what the last full step computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from migm.bases.base import Base, Branch, Moment
from migm.bases.layers import Block, LayerBase, Runner, run_blocks


@dataclass(frozen=True)
class Reuse:
    """Reuse the last features, or the last addition of all blocks to their input (TeaCache's choice).

    `of` "features" computes nothing on cheap steps. "residual" adds to the present input, so that new tokens reach the
    features, at the cost of the first and last layers (docs/originals/methods.md, TeaCache). A step draws only at rows
    that are still masked, and these have the same input as before. If nothing else enters the blocks, both therefore
    give the same tokens, and `features` is cheaper.
    """

    of: Literal["features", "residual"] = "features"

    captured: ClassVar[bool] = True

    def start(self, base: Base, branch: Branch) -> "_Held | _Residual":
        return _Held() if self.of == "features" else _Residual(base, branch)  # type: ignore[arg-type]


class _Held:
    features: Tensor

    def update(self, step: int, features: Tensor) -> None:
        self.features = features

    def predict(self, step: int, tokens: Tensor, new_positions: Tensor, moment: Moment) -> Tensor:
        return self.features


class _Residual:
    residual: Tensor

    def __init__(self, base: LayerBase, branch: Branch):
        self.base, self.branch = base, branch

    def runner(self, step: int) -> Runner:
        def run(blocks: Sequence[Block], x: Tensor, ctx: Any) -> Tensor:
            out = run_blocks(blocks, x, ctx)
            self.residual = out - x
            return out

        return run

    def update(self, step: int, features: Tensor) -> None:
        """Do nothing: the runner has kept the residual."""

    def predict(self, step: int, tokens: Tensor, new_positions: Tensor, moment: Moment) -> Tensor:
        x, ctx = self.base.prepare(tokens, self.branch, moment)
        return self.base.finalize(x + self.residual, ctx)
