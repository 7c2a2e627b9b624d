"""Define tier 2 of the base contract: the layers of a base, on any rows of its sequence."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from jaxtyping import Float, Int
from torch import Tensor

from migm.bases.base import Base, Branch, Moment
from migm.runtime.compiling import Fast, as_it_is
from migm.runtime.errors import UserError
from migm.runtime.shapes import Tokens


class LayerContext(Protocol):
    """The data that blocks need besides their rows."""

    def at(self, rows: Int[Tensor, "cb r"] | None) -> "LayerContext":
        """Return the context of these rows, or of all rows without `rows`."""
        ...


class Block(Protocol):
    """One layer, on any rows of the sequence; `ctx` belongs to the same rows."""

    def k(self, x: Float[Tensor, "cb r c"], ctx: Any) -> Float[Tensor, "cb heads r d"]:
        """Return the keys, with position encoding."""
        ...

    def v(self, x: Float[Tensor, "cb r c"], ctx: Any) -> Float[Tensor, "cb heads r d"]: ...

    def attn_delta(
        self, x: Float[Tensor, "cb r c"], ctx: Any, k: Float[Tensor, "cb heads t d"], v: Float[Tensor, "cb heads t d"]
    ) -> Float[Tensor, "cb r c"]:
        """Return what attention to the keys and values of the whole sequence adds to x."""
        ...

    def mlp_delta(self, x: Float[Tensor, "cb r c"], ctx: Any) -> Float[Tensor, "cb r c"]: ...

    def __call__(self, x: Float[Tensor, "cb t c"], ctx: Any) -> Float[Tensor, "cb t c"]:
        """Run attention and feed-forward on all rows, fused."""
        ...


# A function of the blocks, the first block's input and the context that returns the last block's output.
Runner = Callable[[Sequence[Block], Float[Tensor, "cb t c"], Any], Float[Tensor, "cb t c"]]


class LayerBase(Base, Protocol):
    """A base that offers its layers: `features` is `prepare`, then all blocks, then `finalize`.

    Where what follows the blocks sees more than one row, the base has an attribute `ends_whole` that is True. Then
    `finalize` needs all rows, with the context of all or some, and features may have other rows than the blocks
    (`Branch.block_rows`).
    """

    @property
    def blocks(self) -> Sequence[Block]: ...

    def prepare(
        self, tokens: Tokens, branch: Branch, moment: Moment, rows: Int[Tensor, "cb r"] | None = None
    ) -> tuple[Float[Tensor, "{branch.copies}*b _ c"], Any]:
        """Return the first block's input and the blocks' context, for `rows` alone or for the whole sequence."""
        ...

    def finalize(self, x: Float[Tensor, "cb r c"], ctx: Any) -> Float[Tensor, "cb r c"]:
        """Turn the last block's output, at the rows of `ctx`, into features."""
        ...

    def features(
        self, tokens: Tokens, branch: Branch, moment: Moment, runner: Runner | None = None
    ) -> Float[Tensor, "{branch.copies}*b t c"]: ...


class Layered:
    """Features of a base that offers its layers, by the definition of `LayerBase`."""

    blocks: Any
    prepare: Callable[..., tuple[Tensor, Any]]
    finalize: Callable[[Tensor, Any], Tensor]

    def features(
        self, tokens: Tokens, branch: Branch, moment: Moment, runner: Runner | None = None
    ) -> Float[Tensor, "{branch.copies}*b t c"]:
        """Run all blocks on the whole sequence, by `runner` if one is given."""
        x, ctx = self.prepare(tokens, branch, moment)
        return self.finalize((runner or run_blocks)(self.blocks, x, ctx), ctx)


def ends_whole(base: object) -> bool:
    """Return whether `finalize` of a base needs all rows."""
    return bool(getattr(base, "ends_whole", False))


def layered(base: Base, who: str) -> LayerBase:
    """Return the base with the type of a base that offers its layers; UserError if it does not, as `who` needs them."""
    if not hasattr(base, "blocks"):
        raise UserError(f"{who} works on the layers of a base, which {type(base).__name__} does not offer")
    return base  # type: ignore[return-value]


def run_blocks(
    blocks: Sequence[Block], x: Float[Tensor, "cb t c"], ctx: Any, fast: Fast = as_it_is
) -> Float[Tensor, "cb t c"]:
    """Run the fused blocks one after the other; every other runner of a full pass has to give the same output.

    `fast` compiles the run of one block, whose code then serves all blocks.
    """
    run = fast(run_block)
    for block in blocks:
        x = run(block, x, ctx)
    return x


def run_block(block: Block, x: Float[Tensor, "cb t c"], ctx: Any) -> Float[Tensor, "cb t c"]:
    return block(x, ctx)
