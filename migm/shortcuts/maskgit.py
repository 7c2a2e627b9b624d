"""Define MaskGIT-Shortcut (arXiv 2602.23996), the light network that predicts MaskGIT's next hidden state."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from migm.bases.base import Control
from migm.bases.transformer import FeedForward, PackedAttention, PreNorm, Wrapped
from migm.runtime.errors import UserError
from migm.runtime.kinds import Count, Dropout, Whole
from migm.runtime.shapes import Ratio
from migm.shortcuts.network import ShortcutNetwork
from migm.shortcuts.parts import TimeEmbedder, inner_width, modulated, published_sizes


class MaskGITBlock(nn.Module):
    """Cross attention to the new tokens, then self attention, each followed by a feed-forward.

    In both attentions only the queries are normalised, as in the released code; usual pre-norm also normalises keys and
    values.
    """

    def __init__(self, channels: int, num_heads: int, dropout: float):
        super().__init__()
        self.cross_attn = PreNorm(channels, Wrapped(PackedAttention(channels, num_heads, dropout)))
        self.cross_attn_ff = PreNorm(channels, FeedForward(channels, 4 * channels, dropout))
        self.self_attn = PreNorm(channels, Wrapped(PackedAttention(channels, num_heads, dropout)))
        self.self_attn_ff = PreNorm(channels, FeedForward(channels, 4 * channels, dropout))

    def forward(
        self, x: Float[Tensor, "b t c"], new: Float[Tensor, "b k c"] | None, mask: Bool[Tensor, "b 1 1 k"] | None
    ) -> Float[Tensor, "b t c"]:
        """Apply the block; without new tokens, the first attention is a second self attention."""
        x = x + self.cross_attn.fn.mha(self.cross_attn.norm(x), x if new is None else new, mask)
        x = x + self.cross_attn_ff.fn(self.cross_attn_ff.norm(x))
        x = x + self.self_attn.fn.mha(self.self_attn.norm(x), x)
        return x + self.self_attn_ff.fn(self.self_attn_ff.norm(x))


class MaskGITShortcut(ShortcutNetwork):
    """features + S(features, new tokens, mask ratio), with the keys of the published checkpoints.

    `bottleneck_ratio` R divides the width: the inner width is c / R, and there are no projections at R = 1. `depth` D
    is the number of pairs of cross and self attention. Without `cross_attention` the first attention is a second self
    attention (the paper's ablation), without `time` the mask ratio is left out. The mask ratio enters once, after the
    blocks, as in the released code.
    """

    def __init__(
        self,
        channels: Count,
        bottleneck_ratio: Count = 2,
        depth: Count = 1,
        num_heads: Count = 16,
        time: bool = True,
        cross_attention: bool = True,
        dropout: Dropout = 0.0,
        num_positions: Whole = 0,
    ):
        super().__init__()
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        inner = inner_width(channels, bottleneck_ratio, num_heads)
        project = bottleneck_ratio > 1
        self.proj_in = nn.Linear(channels, inner) if project else nn.Identity()
        self.proj_out = nn.Linear(inner, channels) if project else nn.Identity()
        if cross_attention:
            self.new_token_proj_in = nn.Linear(channels, inner) if project else nn.Identity()
        if num_positions:
            self.pos_emb = nn.Parameter(nn.init.normal_(torch.empty(num_positions, inner), std=0.3))
        self.blocks = nn.ModuleList(MaskGITBlock(inner, num_heads, dropout) for _ in range(depth))
        self.last_layer = nn.Sequential(
            nn.LayerNorm(inner, eps=1e-12), nn.Linear(inner, inner), nn.GELU(), nn.LayerNorm(inner, eps=1e-12)
        )
        if time:
            self.time_embedder = TimeEmbedder(inner)
            self.adaLN_modulation = nn.Linear(inner, 2 * inner)

    @classmethod
    def published(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        return published_sizes(tensors, "last_layer.1.weight")

    @torch.no_grad()
    def calibrate(self, embeddings: Float[Tensor, "... c"]) -> None:
        """Divide the fresh projection of new tokens by the standard deviation of the base's input embeddings.

        The published bases' tables are N(0, 1). A table that was trained from small values would make keys and values
        so small that training would first spend hundreds of steps on their growth.
        """
        if self.config["cross_attention"] and isinstance(self.new_token_proj_in, nn.Linear):
            weight = self.new_token_proj_in.weight
            weight /= embeddings.float().std().to(weight.device)

    def forward(self, features: Float[Tensor, "b t c"], new: Control, mask_ratio: Ratio) -> Float[Tensor, "b t c"]:
        """Return the features of the next step.

        `features` are those of the last step. `new` are the tokens that the last step revealed, as the base embeds
        them, positions included. `mask_ratio` is the share that is still masked now.
        """
        time = self.time_embedder(mask_ratio) if self.config["time"] else None
        return features + self.proj_out(self.hidden(self.proj_in(features), new, time))

    def hidden(
        self, x: Float[Tensor, "b t ci"], new: Control, time: Float[Tensor, "b ci"] | None
    ) -> Float[Tensor, "b t ci"]:
        """Return the output of all blocks, which `proj_out` turns into a change of the features.

        `x` are projected features, and `time` is the embedding of the mask ratio.
        """
        if self.config["num_positions"]:
            x = x + self._positions(x.shape[1])
        source = self.new_token_proj_in(new.embeddings) if self.config["cross_attention"] else None
        mask = None if source is None or new.mask is None else new.mask[:, None, None, :]
        for block in self.blocks:
            x = block(x, source, mask)
        x = self.last_layer(x)
        return x if time is None else modulated(x, self.adaLN_modulation(time))

    def _positions(self, rows: int) -> Float[Tensor, "{rows} c"]:
        """Return the position embedding of all `rows`; it is zero beyond the first `num_positions`."""
        if rows < len(self.pos_emb):
            raise UserError(f"shortcut.num_positions={len(self.pos_emb)} is more than the {rows} rows of the features")
        return nn.functional.pad(self.pos_emb, (0, 0, 0, rows - len(self.pos_emb)))
