"""Inside the base's layers: tier 2 of the base contract (DESIGN section 4), and stored keys and values."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from migm.bases.base import Base, Branch


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


Runner = Callable[[Sequence[Block], Tensor, Any], Tensor]  # blocks, x (b, t, c), ctx -> the last one's output


class LayerBase(Base, Protocol):
    """A base that offers its layers: `features` is `finalize` of the blocks' run on what `prepare` gives."""

    @property
    def blocks(self) -> Sequence[Block]: ...

    def prepare(self, tokens: Tensor, branch: Branch, mask_ratio: Tensor) -> tuple[Tensor, Any]:
        """The first block's input (copies * b, t, c) and the blocks' context, `ctx.at(rows)` being that of rows."""
        ...

    def finalize(self, x: Tensor) -> Tensor: ...

    def features(self, tokens: Tensor, branch: Branch, mask_ratio: Tensor, runner: Runner | None = None) -> Tensor: ...


class KeyValues:
    """Keys and values of every layer and row of one branch, each (b, heads, t, head channels)."""

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []

    def run(self, blocks: Sequence[Block], x: Tensor, ctx: Any) -> Tensor:
        """All rows through all blocks, a `Runner`; their keys and values replace the stored ones."""
        self.layers = []  # first, to free their memory
        for block in blocks:
            k, v = block.k(x, ctx), block.v(x, ctx)
            self.layers.append((k, v))
            x = _advance(block, x, ctx, k, v)
        return x

    def run_rows(
        self, blocks: Sequence[Block], x: Tensor, ctx: Any, rows: Tensor, keep: Tensor | None = None
    ) -> Tensor:
        """The rows (b, n) of x (b, t, c), each once, through all blocks, attending to what is stored of the others.

        Their keys and values are stored; those where `keep` (b, n) is False are not, and what comes
        out there means nothing.
        """
        x, ctx = take(x, rows), ctx.at(rows)
        for block, (k, v) in zip(blocks, self.layers, strict=True):
            put(k.transpose(1, 2), rows, block.k(x, ctx).transpose(1, 2), keep)
            put(v.transpose(1, 2), rows, block.v(x, ctx).transpose(1, 2), keep)
            x = _advance(block, x, ctx, k, v)
        return x


def _advance(block: Block, x: Tensor, ctx: Any, k: Tensor, v: Tensor) -> Tensor:
    x = x + block.attn_delta(x, ctx, k, v)
    return x + block.mlp_delta(x, ctx)


def take(stored: Tensor, rows: Tensor) -> Tensor:
    """Rows (b, n) of (b, t, ...) -> (b, n, ...)."""
    return stored[_batch(rows), rows]


def put(stored: Tensor, rows: Tensor, new: Tensor, keep: Tensor | None = None) -> None:
    """Write (b, n, ...) over rows (b, n), each once, of (b, t, ...), in place, but where `keep` (b, n) is False."""
    if keep is not None:
        new = new.where(keep.view(*keep.shape, *(1,) * (new.dim() - 2)), take(stored, rows))
    stored[_batch(rows), rows] = new


def _batch(rows: Tensor) -> Tensor:
    return torch.arange(len(rows), device=rows.device)[:, None]
