"""Reuse: what the last full step computed stands in until the next one."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from migm.bases.base import Base, Branch
from migm.bases.layers import Block, LayerBase, Runner, run_blocks


class Reuse:
    """The last features, or what the blocks added to their input (TeaCache's choice).

    `of` "features" computes nothing at all on cheap steps; "residual" adds to the present input, and
    so lets new tokens through paying for the first and last layers (docs/originals/methods.md, TeaCache). Rows that
    are still masked, the only ones a step draws at, have the same input as before: where nothing else
    enters the blocks, both give the same tokens, and `features` is cheaper.
    """

    def __init__(self, of: Literal["features", "residual"] = "features"):
        self.of = of

    def start(self, base: Base, branch: Branch) -> "_Held | _Residual":
        return _Held() if self.of == "features" else _Residual(base, branch)  # type: ignore[arg-type]


class _Held:
    features: Tensor

    def update(self, step: int, features: Tensor) -> None:
        self.features = features

    def predict(self, step: int, tokens: Tensor, new_positions: Tensor, mask_ratio: Tensor) -> Tensor:
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
        """The runner has seen what is kept."""

    def predict(self, step: int, tokens: Tensor, new_positions: Tensor, mask_ratio: Tensor) -> Tensor:
        x, _ = self.base.prepare(tokens, self.branch, mask_ratio)
        return self.base.finalize(x + self.residual)
