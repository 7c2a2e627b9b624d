"""Run a base's layers and keep some of their values, for one branch of one generation."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from migm.bases.base import take
from migm.bases.layers import Block, LayerBase, Runner, ends_whole


class KeyValues:
    """Keys and values of every layer and row, each (b, heads, t, head channels)."""

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []

    @property
    def num_rows(self) -> int:
        """Number of rows of the blocks, known after a pass."""
        return self.layers[0][0].shape[2]

    def run(self, blocks: Sequence[Block], x: Tensor, ctx: Any) -> Tensor:
        """Run all rows through all blocks, as a `Runner`; their keys and values replace the stored ones."""
        self.layers = []  # before the loop, to free the memory
        for block in blocks:
            k, v = block.k(x, ctx), block.v(x, ctx)
            self.layers.append((k, v))
            x = _advance(block, x, ctx, k, v)
        return x

    def run_rows(
        self, blocks: Sequence[Block], x: Tensor, ctx: Any, rows: Tensor, keep: Tensor | None = None
    ) -> Tensor:
        """Run distinct rows (b, n), as x (b, n, c), through all blocks; other rows keep their stored keys and values.

        The new keys and values are stored, except where `keep` (b, n) is False. At these rows the output means nothing.
        """
        for block, (k, v) in zip(blocks, self.layers, strict=True):
            put(k.transpose(1, 2), rows, block.k(x, ctx).transpose(1, 2), keep)
            put(v.transpose(1, 2), rows, block.v(x, ctx).transpose(1, 2), keep)
            x = _advance(block, x, ctx, k, v)
        return x


class RowFeatures:
    """The features of a branch, of which cheap steps compute some of the blocks' rows anew.

    What follows the blocks works on these rows alone, or, where the base needs all of them, on their output and that
    which was kept of the others.
    """

    features: Tensor
    out: Tensor | None = None  # output of the last block, if the base needs all rows of it

    def __init__(self, base: LayerBase):
        self.base, self.whole = base, ends_whole(base)

    def watched(self, run: Runner) -> Runner:
        """Return a runner that does the same, and whose output is kept if the base needs it."""

        def keeping(blocks: Sequence[Block], x: Tensor, ctx: Any) -> Tensor:
            self.out = run(blocks, x, ctx)
            return self.out

        return keeping if self.whole else run

    def renew(self, x: Tensor, ctx: Any, rows: Tensor, keep: Tensor | None = None) -> Tensor:
        """Take the last block's output x (b, n, c) at `rows` (b, n) and return all features.

        The rows where `keep` (b, n) is False stay. What was returned before is not changed.
        """
        if self.out is not None:
            put(self.out, rows, x, keep)
            self.features = self.base.finalize(self.out, ctx)
        else:
            self.features = self.features.clone()  # copied, since observers may hold the last features
            put(self.features, rows, self.base.finalize(x, ctx), keep)
        return self.features


class Deltas:
    """Two series for every layer: the additions of attention and those of the feed-forward."""

    def __init__(self, new_history: Callable[[], "Series"]):
        self.new_history = new_history
        self.layers: list[tuple[Series, Series]] = []

    def run(self, step: int) -> Callable[[Sequence[Block], Tensor, Any], Tensor]:
        """Return a `Runner` of a full pass that appends to the series."""

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
        """Add the layers' predicted additions to x (b, t, c), without running a block."""
        for attn, mlp in self.layers:
            x = x + attn.predict(step)
            x = x + mlp.predict(step)
        return x


class Series(Protocol):
    """Values of the full steps, and a prediction of the value at a later step."""

    def update(self, step: int, value: Tensor) -> None: ...

    def predict(self, step: int) -> Tensor: ...


class VVerify:
    """The stored keys, values and additions of every layer, at all rows.

    A partial pass computes those of the `image` rows whose values have changed most since they were stored, chosen anew
    in every layer (dLLM-Cache, arXiv 2506.06295, section 3). Most rows have not changed at all, since their inputs were
    not computed either. Of these the rows that were stored longest ago come first, where the original leaves the choice
    to rounding.
    """

    def __init__(self) -> None:
        # k and v (b, t, heads, head channels), attention and MLP (b, t, c), number of the last pass that computed a row
        # (b, t)
        self.layers: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
        self.passes = 0

    @property
    def num_rows(self) -> int:
        """Number of rows of the blocks, known after a pass."""
        return self.layers[0][-1].shape[1]

    def run(self, blocks: Sequence[Block], x: Tensor, ctx: Any) -> Tensor:
        """Run all rows through all blocks, as a `Runner`, and replace all stored values."""
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
        """Run x (b, t, c) through all blocks, computing `rows` (b, n) and `num_changed` of the `image` rows (b, m).

        The other rows get the stored additions.
        """
        self.passes += 1
        for block, (k, v, attn, mlp, last) in zip(blocks, self.layers, strict=True):
            chosen = rows
            if num_changed:
                new = block.v(take(x, image), ctx.at(image)).transpose(1, 2)
                alike = cosine_similarity(new.flatten(2), take(v, image).flatten(2), dim=-1)
                # Rounded so coarsely that rounding errors, which depend on the batch size, do not order the rows.
                order = (alike.double() * 2**16).round() * 2**16 + last.gather(1, image)
                changed = image.gather(1, order.sort(dim=1, stable=True).indices[:, :num_changed])
                put(v, image, new)
                put(k, changed, block.k(take(x, changed), ctx.at(changed)).transpose(1, 2))
                chosen = changed if rows is None else torch.cat([rows, changed], 1)
            if rows is not None:
                x_rows, at = take(x, rows), ctx.at(rows)
                put(k, rows, block.k(x_rows, at).transpose(1, 2))
                put(v, rows, block.v(x_rows, at).transpose(1, 2))
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


def put(stored: Tensor, rows: Tensor, new: Tensor, keep: Tensor | None = None) -> None:
    """Write `new` (b, n, ...) in place to the distinct rows (b, n) of (b, t, ...) where `keep` (b, n) is True."""
    if keep is not None:
        new = new.where(keep.view(*keep.shape, *(1,) * (new.dim() - 2)), take(stored, rows))
    stored[torch.arange(len(rows), device=rows.device)[:, None], rows] = new
