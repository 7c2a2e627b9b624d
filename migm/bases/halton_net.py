"""The transformer of Halton-MaskGIT, with the keys of its checkpoints (docs/originals/halton.md, Transformer)."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, rms_norm, silu

from migm.bases.attention import attention
from migm.bases.llada import RMSNorm
from migm.runtime.errors import UserError
from migm.runtime.kinds import Count

EPS = 1e-5  # of every norm
PARTS = 6  # vectors of the class that a block reads: shift, scale and gate of attention, then of the feed-forward
LAST = 2  # shift and scale of the last norm
WRAPPERS = ("module.", "_orig_mod.")  # of several devices and of the compiler, which may begin or stand in names


class Modulated(NamedTuple):
    """Shifts, scales and gates that the class gives to blocks and last norm, the same for all rows."""

    blocks: Tensor  # (b, layers, 6, c)
    last: Tensor  # (b, 2, c)

    def at(self, rows: Tensor | None) -> "Modulated":
        """Return this context: every row carries its position from the input on."""
        return self


class WideAttention(nn.Module):
    """Attention whose queries and keys are normalised over all heads together, without a gain.

    The width of the heads together is the largest multiple of their number up to `channels`: six heads of 85 for 512.
    """

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.num_heads, inner = num_heads, channels // num_heads * num_heads
        self.wq, self.wk, self.wv = (nn.Linear(channels, inner, bias=False) for _ in range(3))
        self.wo = nn.Linear(inner, channels, bias=False)

    def k(self, h: Tensor) -> Tensor:
        """Return the keys (b, heads, n, head channels) of h (b, n, c)."""
        return self._heads(_unit(self.wk(h)))

    def v(self, h: Tensor) -> Tensor:
        return self._heads(self.wv(h))

    def attend(self, h: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from h (b, n, c) to these keys and values."""
        return self.wo(attention(self._heads(_unit(self.wq(h))), k, v).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _unit(x: Tensor) -> Tensor:
    return rms_norm(x, x.shape[-1:], eps=EPS)


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x), without biases."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.w1, self.w3 = (nn.Linear(channels, hidden, bias=False) for _ in range(2))
        self.w2 = nn.Linear(hidden, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(silu(self.w1(x)) * self.w3(x))


class HaltonBlock(nn.Module):
    """Attention and feed-forward, each between a norm and a gate that the class modulates.

    `k`, `v`, `attn_delta` and `mlp_delta` work on any rows of the sequence (tier 2 of the base contract); `forward`
    applies all of them to all rows.
    """

    layer: Tensor

    def __init__(self, channels: int, num_heads: int, mlp_channels: int, layer: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(channels, PARTS * channels))
        self.ln1, self.ln2 = RMSNorm(channels, EPS), RMSNorm(channels, EPS)
        self.attn, self.ff = WideAttention(channels, num_heads), SwiGLU(channels, mlp_channels)
        # A tensor, since a number that differs from block to block would be compiled anew for each.
        self.register_buffer("layer", torch.tensor([layer]), persistent=False)

    def k(self, x: Tensor, ctx: Modulated) -> Tensor:
        """Return the keys (b, heads, n, head channels) of x (b, n, c), normalised."""
        return self.attn.k(self._first(x, self.parts(ctx)))

    def v(self, x: Tensor, ctx: Modulated) -> Tensor:
        return self.attn.v(self._first(x, self.parts(ctx)))

    def attn_delta(self, x: Tensor, ctx: Modulated, k: Tensor, v: Tensor) -> Tensor:
        """Return what attention to the keys and values of the whole sequence adds to x (b, n, c)."""
        parts = self.parts(ctx)
        return parts[2] * self.attn.attend(self._first(x, parts), k, v)

    def mlp_delta(self, x: Tensor, ctx: Modulated) -> Tensor:
        """Return what the feed-forward adds to x (b, n, c)."""
        return self._fed(x, self.parts(ctx))

    def forward(self, x: Tensor, ctx: Modulated) -> Tensor:
        """Map x (b, t, c) to (b, t, c), as the methods above do, but with fewer norms."""
        parts = self.parts(ctx)
        h = self._first(x, parts)
        x = x + parts[2] * self.attn.attend(h, self.attn.k(h), self.attn.v(h))
        return x + self._fed(x, parts)

    def parts(self, ctx: Modulated) -> tuple[Tensor, ...]:
        """Return shift, scale and gate of attention, then of the feed-forward, each (b, 1, c)."""
        return ctx.blocks.index_select(1, self.layer).unbind(2)

    def _first(self, x: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
        return self.ln1(x) * (1 + parts[1]) + parts[0]

    def _fed(self, x: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
        return parts[5] * self.ff(self.ln2(x) * (1 + parts[4]) + parts[3])


class HaltonLayers(nn.Module):
    """The blocks, under the checkpoint's name `transformer.layers`."""

    def __init__(self, layers: list[HaltonBlock]):
        super().__init__()
        self.layers = nn.ModuleList(layers)


class GainAndBias(RMSNorm):
    """x / rms(x), multiplied by a gain, plus a bias."""

    def __init__(self, channels: int):
        super().__init__(channels, EPS)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.bias


class LastNorm(nn.Module):
    """The norm that the class modulates once more; its output are the features."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm_final = GainAndBias(channels)
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(channels, LAST * channels))

    def forward(self, x: Tensor, ctx: Modulated) -> Tensor:
        shift, scale = ctx.last.unsqueeze(2).unbind(1)
        return self.norm_final(x) * (1 + scale) + shift


class HeadBias(nn.Module):
    """The bias of the head; its weights are those of `tok_emb`."""

    def __init__(self, num_ids: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_ids))


class HaltonTransformer(nn.Module):
    """Halton-MaskGIT's transformer over l image tokens followed by one learned row, the register (t = l + 1).

    Ids: 0...v-1 codes, v mask; classes have a table of their own, whose last row is "no class". A class is not in the
    sequence but modulates every norm and gate, by `modulation`. Logits are `features @ table.T + bias`, with the same
    bias everywhere (reference: valeoai/Halton-MaskGIT).

    With `mask_logit` the mask is one of the tokens that may be drawn, as published: a drawn mask counts as decoded and
    becomes v - 1 in the end. All weights are random at first; a training from scratch would begin with zero gates.
    """

    def __init__(
        self,
        num_tokens: Count,
        vocab_size: Count,
        num_classes: Count,
        channels: Count,
        depth: Count,
        num_heads: Count,
        mlp_channels: Count,
        mask_logit: bool = True,
    ):
        super().__init__()
        if num_heads > channels:
            raise ValueError(
                f"base.transformer.num_heads={num_heads} must be at most base.transformer.channels={channels}"
            )
        self.num_tokens, self.vocab_size, self.num_classes = num_tokens, vocab_size, num_classes
        self.num_heads = num_heads
        self.num_logits = vocab_size + mask_logit
        self.cls_emb = nn.Embedding(num_classes + 1, channels)
        self.tok_emb = nn.Embedding(vocab_size + 1, channels)
        self.pos_emb = nn.Embedding(num_tokens, channels)
        self.reg_tokens = nn.Embedding(1, channels)
        self.transformer = HaltonLayers([HaltonBlock(channels, num_heads, mlp_channels, i) for i in range(depth)])
        self.last_norm = LastNorm(channels)
        self.head = HeadBias(vocab_size + 1)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
            elif isinstance(part, nn.Embedding):
                nn.init.normal_(part.weight, std=0.02)

    def from_published(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename tensors of a published checkpoint and leave out the head's weights, which have to be the table's.

        Tensors with other names are returned unchanged; strict loading refuses them.
        """
        named = {_unwrapped(name): tensor for name, tensor in tensors.items()}
        head, table = named.pop("head.weight", None), named.get("tok_emb.weight")
        if head is not None and (table is None or not torch.equal(head, table)):
            raise UserError(
                "head.weight is not tok_emb.weight; this model has one table for both, as the published ones have"
            )
        return named

    def modulation(self, labels: Tensor) -> Tensor:
        """Return all that the blocks and the last norm read of labels (b,): (b, 6 layers + 2, c)."""
        known, c = self.cls_emb(labels), self.pos_emb.embedding_dim
        readers = [*(block.mlp for block in self.transformer.layers), self.last_norm.mlp]
        return torch.cat([reader(known).unflatten(-1, (-1, c)) for reader in readers], 1)  # type: ignore[operator]

    def embed(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return input embeddings, table plus position, of tokens (b, k) at positions (b, k) or at all."""
        where = self.pos_emb.weight if positions is None else self.pos_emb(positions)
        return self.tok_emb(tokens) + where

    def prepare(self, tokens: Tensor, modulation: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Modulated]:
        """Return the blocks' input and context of tokens (b, l): (b, t, c), or (b, n, c) for `rows` (b, n)."""
        blocks, last = modulation[:, :-LAST], modulation[:, -LAST:]
        ctx = Modulated(blocks.unflatten(1, (-1, PARTS)), last)
        if rows is None:
            register = self.reg_tokens.weight.expand(len(tokens), 1, -1)
            return torch.cat([self.embed(tokens), register], 1), ctx
        image = rows < self.num_tokens
        ids = tokens.gather(1, rows.clamp(max=self.num_tokens - 1))
        table = torch.cat([self.pos_emb.weight, self.reg_tokens.weight])
        return embedding(rows, table) + self.tok_emb(ids) * image[..., None], ctx

    def finalize(self, x: Tensor, ctx: Modulated) -> Tensor:
        """Turn the last block's output into features."""
        return self.last_norm(x, ctx)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Map tokens (b, l) and labels (b,) to features (b, t, c)."""
        x, ctx = self.prepare(tokens, self.modulation(labels))
        for block in self.transformer.layers:
            x = block(x, ctx)
        return self.finalize(x, ctx)

    def logits(self, features: Tensor) -> Tensor:
        """Return logits (b, n, v), or (b, n, v + 1) with `mask_logit`, of features (b, n, c) at any positions."""
        v = self.num_logits
        return linear(features, self.tok_emb.weight[:v], self.head.bias[:v])


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name
