"""The blocks of Meissonic, with the keys of its checkpoint (docs/originals/meissonic.md, Blocks)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, gelu, layer_norm, linear, silu

from migm.bases.attention import attention
from migm.bases.base import take
from migm.bases.llada import RMSNorm

EPS = 1e-6
MLP_RATIO = 4


class JointContext(NamedTuple):
    """The context of the blocks: what conditions the images, and where the rows they work on lie in the sequence."""

    vector: Tensor  # (b, c), the conditioning of norms and gates
    cos: Tensor  # (t, head channels) or (b, n, head channels), float32
    sin: Tensor
    num_text: int  # rows of the whole sequence that are text; they come first
    text: Tensor | None = (
        None  # (b, m), the rows among some rows that are text, and others where these are fewer than m
    )
    is_text: Tensor | None = None  # (b, m), True at those that are

    def at(self, rows: Tensor | None) -> "JointContext":
        """Return the context of the rows (b, n) alone, or of all rows without `rows`."""
        if rows is None:
            return self
        ranked = (rows < self.num_text).sort(dim=1, descending=True, stable=True)
        most = min(rows.shape[1], self.num_text)
        text, is_text = ranked.indices[:, :most], ranked.values[:, :most]
        return self._replace(cos=embedding(rows, self.cos), sin=embedding(rows, self.sin), text=text, is_text=is_text)

    def by_segment(self, x: Tensor, text: Callable[[Tensor], Tensor], image: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply a function to the text rows of x (b, n, c) and another one to those of the image.

        Which of some rows are text differs by sequence. So all of them are taken for image rows first, and then as many
        as may be text for text rows.
        """
        if self.text is None or self.is_text is None:
            return torch.cat([text(x[:, : self.num_text]), image(x[:, self.num_text :])], 1)
        out = image(x)
        some, here = text(take(x, self.text)), take(out, self.text)
        return out.scatter(1, self.text[..., None].expand_as(here), some.where(self.is_text[..., None], here))


def rotate(x: Tensor, ctx: JointContext) -> Tensor:
    """Turn the channels (2j, 2j + 1) of x (b, heads, n, head channels) by their angles, in at least float32."""
    cos, sin = (table.unsqueeze(-3) for table in (ctx.cos, ctx.sin))
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return (x * cos + torch.stack([-odd, even], -1).flatten(-2) * sin).to(x.dtype)


def rotations(grid: tuple[int, int], num_text: int, axes: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Return cosines and sines (t, head channels), float32, of text rows and a grid of image rows.

    A row has three coordinates: (0, 0, 0) for text, (0, y, x) in the image; `axes` are their numbers of channels.
    """
    height, width = grid
    image = torch.cartesian_prod(torch.zeros(1), torch.arange(height).float(), torch.arange(width).float())
    places = torch.cat([torch.zeros(num_text, 3), image]).double()
    exponents = [torch.arange(0, size, 2, dtype=torch.float64) / size for size in axes]
    angles = torch.cat([places[:, [i]] * 10000.0**-exponent for i, exponent in enumerate(exponents)], 1)
    angles = angles.repeat_interleave(2, 1)
    return angles.cos().float().to(device), angles.sin().float().to(device)


class Packed(nn.Module):
    """A linear of which some outputs can be asked for."""

    def __init__(self, channels: int, outputs: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(outputs, channels)), nn.Parameter(torch.zeros(outputs))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor, outputs: slice) -> Tensor:
        return linear(x, self.weight[outputs], self.bias[outputs])


class Modulation(nn.Module):
    """Shifts, scales and gates of a block, from the conditioning vector."""

    def __init__(self, channels: int, number: int):
        super().__init__()
        self.linear, self.channels, self.number = Packed(channels, number * channels), channels, number

    def forward(self, vector: Tensor, first: int = 0, end: int | None = None) -> tuple[Tensor, ...]:
        """Return the values with the numbers first...end-1, by default all, each (b, 1, c)."""
        end = self.number if end is None else end
        outputs = slice(first * self.channels, end * self.channels)
        return self.linear(silu(vector), outputs)[:, None].chunk(end - first, -1)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x (b, n, c), normed without weights, scaled and shifted."""
    return layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


class TanhGELU(nn.Module):
    """A linear and the approximated GELU, under the key `proj`."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return gelu(self.proj(x), approximate="tanh")


class TanhFeedForward(nn.Module):
    """Linear, GELU, linear: `net.0.proj` and `net.2`."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = MLP_RATIO * channels
        self.net = nn.Sequential(TanhGELU(channels, hidden), nn.Identity(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Stream(NamedTuple):
    """The layers of a double-stream block that one of its streams runs."""

    modulation: Modulation
    q: nn.Module
    k: nn.Module
    v: nn.Module
    out: nn.Module
    q_norm: RMSNorm  # over the channels of a head
    k_norm: RMSNorm
    feed: TanhFeedForward

    def normed(self, x: Tensor, vector: Tensor) -> Tensor:
        """Return what attention reads."""
        return modulated(x, *self.modulation(vector, 0, 2))

    def added_by_mlp(self, x: Tensor, vector: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(vector, 3, 6)
        return gate * self.feed(modulated(x, shift, scale))


def per_head(x: Tensor, norm: RMSNorm) -> Tensor:
    """Norm the heads of x (b, n, c) one by one; the result is (b, n, c)."""
    return norm(x.unflatten(-1, (-1, norm.weight.shape[0]))).flatten(-2)


class JointAttention(nn.Module):
    """The projections of both streams, under the checkpoint's names."""

    def __init__(self, channels: int, head_channels: int):
        super().__init__()
        names = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
        for name in names:
            self.add_module(name, nn.Linear(channels, channels))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            self.add_module(name, RMSNorm(head_channels, EPS))


class DoubleBlock(nn.Module):
    """Text and image with weights of their own, joined in one attention; then a feed-forward of each.

    `k`, `v`, `attn_delta` and `mlp_delta` work on any rows of the sequence (tier 2 of the base contract); `forward`
    applies all of them to all rows.
    """

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm1_context = Modulation(channels, 6), Modulation(channels, 6)
        self.attn = JointAttention(channels, channels // num_heads)
        self.ff, self.ff_context = TanhFeedForward(channels), TanhFeedForward(channels)

    @property
    def streams(self) -> tuple[Stream, Stream]:
        """The layers of text, and those of the image."""
        a = self.attn
        text = (a.add_q_proj, a.add_k_proj, a.add_v_proj, a.to_add_out, a.norm_added_q, a.norm_added_k)
        image = (a.to_q, a.to_k, a.to_v, a.to_out[0], a.norm_q, a.norm_k)
        return Stream(self.norm1_context, *text, self.ff_context), Stream(self.norm1, *image, self.ff)  # type: ignore[arg-type]

    def k(self, x: Tensor, ctx: JointContext) -> Tensor:
        """Return the keys (b, heads, n, head channels) of x (b, n, c), normed and rotated."""
        return self._rotated(self._each(x, ctx, lambda s, a: per_head(s.k(a), s.k_norm)), ctx)

    def v(self, x: Tensor, ctx: JointContext) -> Tensor:
        return self._heads(self._each(x, ctx, lambda s, a: s.v(a)))

    def attn_delta(self, x: Tensor, ctx: JointContext, k: Tensor, v: Tensor) -> Tensor:
        """Return what attention to the keys and values of the whole sequence adds to x (b, n, c)."""
        q = self._rotated(self._each(x, ctx, lambda s, a: per_head(s.q(a), s.q_norm)), ctx)
        return self._gated(attention(q, k, v).transpose(1, 2).flatten(2), ctx)

    def mlp_delta(self, x: Tensor, ctx: JointContext) -> Tensor:
        """Return what the feed-forwards add to x (b, n, c)."""
        text, image = (lambda r, s=s: s.added_by_mlp(r, ctx.vector) for s in self.streams)
        return ctx.by_segment(x, text, image)

    def forward(self, x: Tensor, ctx: JointContext) -> Tensor:
        """Map x (b, t, c) to (b, t, c), as the methods above do, but with two norms less."""
        parts = list(zip(self.streams, x.tensor_split([ctx.num_text], 1), strict=True))
        each = [(s, s.normed(part, ctx.vector)) for s, part in parts]
        q, k, v = (
            torch.cat([per_head(s.q(a), s.q_norm) for s, a in each], 1),
            torch.cat([per_head(s.k(a), s.k_norm) for s, a in each], 1),
            torch.cat([s.v(a) for s, a in each], 1),
        )
        out = attention(self._rotated(q, ctx), self._rotated(k, ctx), self._heads(v))
        x = x + self._gated(out.transpose(1, 2).flatten(2), ctx)
        return x + self.mlp_delta(x, ctx)

    def _each(self, x: Tensor, ctx: JointContext, do: Callable[[Stream, Tensor], Tensor]) -> Tensor:
        """Return what a function makes of a stream and of its rows as attention reads them."""
        text, image = (lambda r, s=s: do(s, s.normed(r, ctx.vector)) for s in self.streams)
        return ctx.by_segment(x, text, image)

    def _gated(self, attended: Tensor, ctx: JointContext) -> Tensor:
        text, image = (lambda r, s=s: s.modulation(ctx.vector, 2, 3)[0] * s.out(r) for s in self.streams)
        return ctx.by_segment(attended, text, image)

    def _rotated(self, x: Tensor, ctx: JointContext) -> Tensor:
        return rotate(self._heads(x), ctx)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class SingleAttention(nn.Module):
    """The projections of a single-stream block; it has no output projection of its own."""

    def __init__(self, channels: int, head_channels: int):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.norm_q, self.norm_k = RMSNorm(head_channels, EPS), RMSNorm(head_channels, EPS)


class SingleBlock(nn.Module):
    """Attention and feed-forward side by side, of the same input, with the same weights for text and image.

    One projection takes the outputs of both. So `attn_delta` returns all that the block adds, and `mlp_delta` zero.
    """

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.num_heads, hidden = num_heads, MLP_RATIO * channels
        self.norm = Modulation(channels, 3)
        self.attn = SingleAttention(channels, channels // num_heads)
        self.proj_mlp, self.proj_out = nn.Linear(channels, hidden), nn.Linear(channels + hidden, channels)

    def k(self, x: Tensor, ctx: JointContext) -> Tensor:
        """Return the keys (b, heads, n, head channels) of x (b, n, c), normed and rotated."""
        return self._k(self._normed(x, ctx), ctx)

    def v(self, x: Tensor, ctx: JointContext) -> Tensor:
        return self._heads(self.attn.to_v(self._normed(x, ctx)))

    def attn_delta(self, x: Tensor, ctx: JointContext, k: Tensor, v: Tensor) -> Tensor:
        """Return what attention to the keys and values of the whole sequence, and the feed-forward, add to x."""
        shift, scale, gate = self.norm(ctx.vector)
        return self._of(modulated(x, shift, scale), gate, ctx, k, v)

    def mlp_delta(self, x: Tensor, ctx: JointContext) -> Tensor:
        return torch.zeros_like(x)

    def forward(self, x: Tensor, ctx: JointContext) -> Tensor:
        """Map x (b, t, c) to (b, t, c)."""
        shift, scale, gate = self.norm(ctx.vector)
        a = modulated(x, shift, scale)
        return x + self._of(a, gate, ctx, self._k(a, ctx), self._heads(self.attn.to_v(a)))

    def _of(self, a: Tensor, gate: Tensor, ctx: JointContext, k: Tensor, v: Tensor) -> Tensor:
        q = rotate(self._heads(per_head(self.attn.to_q(a), self.attn.norm_q)), ctx)
        attended = attention(q, k, v).transpose(1, 2).flatten(2)
        return gate * self.proj_out(torch.cat([attended, gelu(self.proj_mlp(a), approximate="tanh")], -1))

    def _k(self, a: Tensor, ctx: JointContext) -> Tensor:
        return rotate(self._heads(per_head(self.attn.to_k(a), self.attn.norm_k)), ctx)

    def _normed(self, x: Tensor, ctx: JointContext) -> Tensor:
        return modulated(x, *self.norm(ctx.vector, 0, 2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
