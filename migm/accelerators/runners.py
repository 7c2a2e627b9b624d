"""Ways through the layers of a base, each with what it keeps of them for one branch of one generation."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from migm.bases.layers import Block


class KeyValues:
    """Keys and values of every layer and row, each (b, heads, t, head channels)."""

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
        """The rows (b, n), each once, as x (b, n, c) through all blocks, attending to what is stored of the others.

        Their keys and values are stored; those where `keep` (b, n) is False are not, and what comes
        out there means nothing.
        """
        for block, (k, v) in zip(blocks, self.layers, strict=True):
            put(k.transpose(1, 2), rows, block.k(x, ctx).transpose(1, 2), keep)
            put(v.transpose(1, 2), rows, block.v(x, ctx).transpose(1, 2), keep)
            x = _advance(block, x, ctx, k, v)
        return x


class Deltas:
    """A history for what attention adds in every layer, and one for what the feed-forward adds."""

    def __init__(self, new_history: Callable[[], "History"]):
        self.new_history = new_history
        self.layers: list[tuple[History, History]] = []

    def run(self, step: int) -> Callable[[Sequence[Block], Tensor, Any], Tensor]:
        """A `Runner` of a full pass that adds to the histories."""

        def run(blocks: Sequence[Block], x: Tensor, ctx: Any) -> Tensor:
            if not self.layers:
                self.layers = [(self.new_history(), self.new_history()) for _ in blocks]
            for block, (attn, mlp) in zip(blocks, self.layers, strict=True):
                delta = block.attn_delta(x, ctx, block.k(x, ctx), block.v(x, ctx))
                attn.update(step, delta)
                x = x + delta
                delta = block.mlp_delta(x, ctx)
                mlp.update(step, delta)
                x = x + delta
            return x

        return run

    def predict(self, step: int, x: Tensor) -> Tensor:
        """The layers' predicted additions to x (b, t, c): no block is run."""
        for attn, mlp in self.layers:
            x = x + attn.predict(step)
            x = x + mlp.predict(step)
        return x


class History(Protocol):
    """Values of the full steps, and what they make expect of a later one."""

    def update(self, step: int, value: Tensor) -> None: ...

    def predict(self, step: int) -> Tensor: ...


class VVerify:
    """The residual stream of all rows, with stored keys, values and additions of every layer.

    Of the `image` rows a partial pass computes those whose values have changed most since they were
    stored, chosen anew in every layer (dLLM-Cache, arXiv 2506.06295, section 3). Most rows have not
    changed at all, since what enters them was not computed either: of these the ones left alone for
    longest come first, where the original leaves the choice to rounding.
    """

    def __init__(self) -> None:
        # k and v (b, t, heads, head channels), attention and MLP (b, t, c), the pass (b, t) that computed them last
        self.layers: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
        self.passes = 0

    def run(self, blocks: Sequence[Block], x: Tensor, ctx: Any) -> Tensor:
        """All rows through all blocks, a `Runner`; all that is stored is replaced."""
        self.layers = []
        for block in blocks:
            k, v = block.k(x, ctx), block.v(x, ctx)
            attn = block.attn_delta(x, ctx, k, v)
            x = x + attn
            mlp = block.mlp_delta(x, ctx)
            x = x + mlp
            last = torch.full(x.shape[:2], self.passes, device=x.device)
            self.layers.append((k.transpose(1, 2), v.transpose(1, 2), attn, mlp, last))
        return x

    def run_rows(
        self, blocks: Sequence[Block], x: Tensor, ctx: Any, rows: Tensor | None, image: Tensor, num_changed: int
    ) -> Tensor:
        """x (b, t, c) through all blocks, of which they compute the `rows` (b, n) and `num_changed` of `image` (b, m).

        To the others the stored additions are added.
        """
        self.passes += 1
        for block, (k, v, attn, mlp, last) in zip(blocks, self.layers, strict=True):
            chosen = rows
            if num_changed:
                new = block.v(take(x, image), ctx.at(image)).transpose(1, 2)
                alike = cosine_similarity(new.flatten(2), take(v, image).flatten(2), dim=-1)
                # Steps so coarse that rounding, which depends on the batch size, does not tell rows apart.
                order = (alike.double() * 2**16).round() * 2**16 + last.gather(1, image)
                changed = image.gather(1, order.sort(dim=1, stable=True).indices[:, :num_changed])
                put(v, image, new)
                put(k, changed, block.k(take(x, changed), ctx.at(changed)).transpose(1, 2))
                chosen = changed if rows is None else torch.cat([rows, changed], 1)
            if rows is not None:
                here, at = take(x, rows), ctx.at(rows)
                put(k, rows, block.k(here, at).transpose(1, 2))
                put(v, rows, block.v(here, at).transpose(1, 2))
            if chosen is not None:
                at = ctx.at(chosen)
                last.scatter_(1, chosen, self.passes)
                put(attn, chosen, block.attn_delta(take(x, chosen), at, k.transpose(1, 2), v.transpose(1, 2)))
                x = x + attn
                put(mlp, chosen, block.mlp_delta(take(x, chosen), at))
                x = x + mlp
            else:
                x = x + attn + mlp
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
