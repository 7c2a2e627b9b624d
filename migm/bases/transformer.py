"""The bidirectional transformer of MaskGIT (Besnier and Chen 2023), with the keys of its public checkpoints."""

from typing import Generic, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from migm.bases.attention import attention
from migm.runtime.kinds import Count, Dropout

Inner = TypeVar("Inner", bound=nn.Module)


class PackedAttention(nn.Module):
    """Multi-head attention with one packed, biased q/k/v projection and a biased output projection.

    `dropout` acts on the attention weights, in training.
    """

    def __init__(self, channels: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.in_proj: nn.Module | None = None  # takes the place of weight and bias (`migm.bases.linear`)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, source: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Attend from `query` (b, t, c) to `source` (b, s, c), by default to itself."""
        c = query.shape[-1]
        if source is None:
            q, k, v = self._packed(query, slice(None)).chunk(3, -1)
        else:
            q = self._packed(query, slice(c))
            k, v = self._packed(source, slice(c, None)).chunk(2, -1)
        return self._attend(*map(self._heads, (q, k, v)), mask=mask)

    def project(self, x: Tensor, part: Literal[0, 1, 2]) -> Tensor:
        """Return only the queries (0), keys (1) or values (2) of x (b, n, c): (b, heads, n, head channels)."""
        c = x.shape[-1]
        return self._heads(self._packed(x, slice(part * c, (part + 1) * c)))

    def attend(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from x (b, n, c) to projected keys and values."""
        return self._attend(self.project(x, 0), k, v)

    def _packed(self, x: Tensor, outputs: slice) -> Tensor:
        """Return some outputs of the packed projection of x."""
        if self.in_proj is not None:
            return self.in_proj(x, outputs)
        return linear(x, self.in_proj_weight[outputs], self.in_proj_bias[outputs])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attention(q, k, v, mask=mask, dropout=dropout).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class PreNorm(nn.Module, Generic[Inner]):
    """A LayerNorm and the function that it feeds, under the keys `norm` and `fn`; the caller composes them."""

    def __init__(self, channels: int, fn: Inner):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(channels), fn


class Wrapped(nn.Module):
    """An extra level in the checkpoint's names: `fn.mha`."""

    def __init__(self, mha: PackedAttention):
        super().__init__()
        self.mha = mha


class FeedForward(nn.Module):
    """Linear, GELU, linear: `net.0` and `net.3` of the checkpoints."""

    def __init__(self, channels: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, channels),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Positioned(NamedTuple):
    """An empty context of the blocks: every row carries its position from the input on."""

    def at(self, rows: Tensor | None) -> "Positioned":
        return self


class TransformerBlock(nn.ModuleList):
    """Pre-norm block; a list, since the checkpoints name its parts `0` (attention) and `1` (feed-forward).

    `k`, `v`, `attn_delta` and `mlp_delta` work on any rows of the sequence (tier 2 of the base contract); `forward`
    applies all of them to all rows.
    """

    def __init__(self, channels: int, num_heads: int, mlp_channels: int, dropout: float):
        attend = PreNorm(channels, Wrapped(PackedAttention(channels, num_heads, dropout)))
        super().__init__([attend, PreNorm(channels, FeedForward(channels, mlp_channels, dropout))])

    @property
    def attention(self) -> PreNorm[Wrapped]:
        return cast("PreNorm[Wrapped]", self[0])  # as text: the compiler cannot follow a type

    def k(self, x: Tensor, ctx: Positioned) -> Tensor:
        """Return the keys (b, heads, n, head channels) of x (b, n, c)."""
        return self.attention.fn.mha.project(self.attention.norm(x), 1)

    def v(self, x: Tensor, ctx: Positioned) -> Tensor:
        return self.attention.fn.mha.project(self.attention.norm(x), 2)

    def attn_delta(self, x: Tensor, ctx: Positioned, k: Tensor, v: Tensor) -> Tensor:
        """Return what attention to the keys and values of the whole sequence adds to x (b, n, c)."""
        return self.attention.fn.mha.attend(self.attention.norm(x), k, v)

    def mlp_delta(self, x: Tensor, ctx: Positioned) -> Tensor:
        """Return what the feed-forward adds to x (b, n, c)."""
        feed = cast("PreNorm[FeedForward]", self[1])
        return feed.fn(feed.norm(x))

    def forward(self, x: Tensor, ctx: Positioned = Positioned()) -> Tensor:  # noqa: B008 the default is empty
        """Map x (b, t, c) to (b, t, c), with one projection for queries, keys and values."""
        x = x + self.attention.fn.mha(self.attention.norm(x))
        return x + self.mlp_delta(x, ctx)


class Trunk(nn.Module):
    """The blocks, under the checkpoint's name `transformer.layers`."""

    def __init__(self, layers: list[TransformerBlock]):
        super().__init__()
        self.layers = nn.ModuleList(layers)


class MaskTransformer(nn.Module):
    """MaskGIT's transformer over l image tokens followed by one class token (t = l + 1).

    Ids: 0...v-1 codes, v mask, v+1... classes, v+1+num_classes "no class". The features are the output of `last_layer`,
    after its LayerNorm; logits are `features @ table.T + bias`, with one bias row for every position (reference:
    valeoai/Maskgit-pytorch v1.0).

    With `mask_logit` the mask is one of the tokens that may be drawn, as in v1.0 but not in the shortcut paper's fork:
    a drawn mask counts as decoded and becomes v - 1 in the end.
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
        dropout: Dropout = 0.0,
        mask_logit: bool = False,
    ):
        super().__init__()
        if channels % num_heads:
            raise ValueError(
                f"base.transformer.channels={channels} must be a multiple of base.transformer.num_heads={num_heads}"
            )
        self.num_tokens, self.vocab_size, self.num_classes = num_tokens, vocab_size, num_classes
        self.num_logits = vocab_size + mask_logit
        rows, t = vocab_size + 1 + num_classes + 1, num_tokens + 1
        self.tok_emb = nn.Embedding(rows, channels)
        self.pos_emb = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, t, channels), std=0.02))
        self.bias = nn.Parameter(torch.zeros(t, rows))
        self.first_layer = nn.Sequential(
            nn.LayerNorm(channels, eps=1e-12),
            nn.Dropout(dropout),
            nn.Linear(channels, channels),
            nn.GELU(),
            nn.LayerNorm(channels, eps=1e-12),
            nn.Dropout(dropout),
            nn.Linear(channels, channels),
        )
        self.transformer = Trunk([TransformerBlock(channels, num_heads, mlp_channels, dropout) for _ in range(depth)])
        self.last_layer = nn.Sequential(
            nn.LayerNorm(channels, eps=1e-12),
            nn.Dropout(dropout),
            nn.Linear(channels, channels),
            nn.GELU(),
            nn.LayerNorm(channels, eps=1e-12),
        )

    def sequence(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Return ids (b, l + 1) of image tokens (b, l) and labels (b,), class last; `num_classes` is no class."""
        return torch.cat([tokens, labels[:, None] + self.vocab_size + 1], 1)

    def embed(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return raw input embeddings, table plus position, of ids (b, n) at positions (b, n) or at all rows."""
        where = self.pos_emb if positions is None else embedding(positions, self.pos_emb[0])
        return self.tok_emb(ids) + where

    def prepare(self, ids: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Positioned]:
        """Return the blocks' input, (b, t, c) for ids (b, t) or (b, n, c) for `rows` (b, n), and their context."""
        ids = ids if rows is None else ids.gather(1, rows)
        return self.first_layer(self.embed(ids, rows)), Positioned()

    def finalize(self, x: Tensor) -> Tensor:
        """Turn the last block's output into features."""
        return self.last_layer(x)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (b, t) to features (b, t, c)."""
        x, ctx = self.prepare(ids)
        for block in self.transformer.layers:
            x = block(x, ctx)
        return self.finalize(x)

    def head(self, features: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return logits of the image codes for features (b, n, c) at the positions (b, n), or at the first n rows.

        The result is (b, n, v), or (b, n, v + 1) with `mask_logit`.
        """
        v = self.num_logits
        bias = self.bias[: features.shape[1], :v] if positions is None else embedding(positions, self.bias[:, :v])
        return linear(features, self.tok_emb.weight[:v]) + bias
