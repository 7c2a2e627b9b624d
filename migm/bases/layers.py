"""Tier 2 of the base contract: the layers of a base, on any rows of its sequence."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

from torch import Tensor

from migm.bases.base import Base, Branch
from migm.runtime.errors import UserError


class Context(Protocol):
    """What the blocks need besides the rows they work on."""

    def at(self, rows: Tensor | None) -> Self:
        """The context of the rows (b, n) of this one's; of all without."""
        ...


class Block(Protocol):
    """One layer, on any rows (b, n, c) of the sequence; `ctx` knows which they are."""

    def k(self, x: Tensor, ctx: Any) -> Tensor:
        """Keys (b, heads, n, head channels), position encoding included."""
        ...

    def v(self, x: Tensor, ctx: Any) -> Tensor: ...

    def attn_delta(self, x: Tensor, ctx: Any, k: Tensor, v: Tensor) -> Tensor:
        """What attention to the keys and values of all t rows adds to x."""
        ...

    def mlp_delta(self, x: Tensor, ctx: Any) -> Tensor: ...

    def __call__(self, x: Tensor, ctx: Any) -> Tensor:
        """All of them on all rows, fused: x (b, t, c) -> (b, t, c)."""
        ...


Runner = Callable[[Sequence[Block], Tensor, Any], Tensor]  # blocks, x (b, t, c), ctx -> the last one's output


class LayerBase(Base, Protocol):
    """A base that offers its layers: `features` is `finalize` of the blocks' run on what `prepare` gives."""

    @property
    def blocks(self) -> Sequence[Block]: ...

    def prepare(
        self, tokens: Tensor, branch: Branch, mask_ratio: Tensor, rows: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """The first block's input (copies * b, t, c) and the blocks' context; of `rows` (copies * b, n) alone."""
        ...

    def finalize(self, x: Tensor) -> Tensor:
        """The last block's output, any rows of it -> features."""
        ...

    def features(self, tokens: Tensor, branch: Branch, mask_ratio: Tensor, runner: Runner | None = None) -> Tensor: ...


def layered(base: Base, who: str) -> LayerBase:
    """The base as one that offers its layers; else UserError says that `who` needs them."""
    if not hasattr(base, "blocks"):
        raise UserError(f"{who} works on the layers of a base, which {type(base).__name__} does not offer")
    return base  # type: ignore[return-value]


def run_blocks(blocks: Sequence[Block], x: Tensor, ctx: Any) -> Tensor:
    """The fused blocks one after the other: what every other runner of a full pass has to equal."""
    for block in blocks:
        x = block(x, ctx)
    return x
