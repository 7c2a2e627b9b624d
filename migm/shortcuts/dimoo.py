"""Define DiMOO-Shortcut (arXiv 2602.23996), the light network that predicts Lumina-DiMOO's next hidden state."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from migm.bases.base import Control
from migm.bases.llada import Context, LlamaBlock, RMSNorm, init_block, rotations
from migm.runtime.errors import UserError
from migm.runtime.kinds import Count, NotNegative, Positive
from migm.runtime.shapes import Ratio
from migm.shortcuts.network import ShortcutNetwork
from migm.shortcuts.parts import TimeEmbedder, inner_width, modulated, published_sizes

New = tuple[Float[Tensor, "b k c"], Context]  # new tokens, with the rotations of their rows and their mask


class DiMOOBlock(nn.Module):
    """Two blocks like those of the base: the first attends to the new tokens, the second to the sequence."""

    def __init__(self, channels: int, num_heads: int, mlp_channels: int, eps: float):
        super().__init__()
        self.cross_attn = LlamaBlock(channels, num_heads, mlp_channels, eps)
        self.self_attn = LlamaBlock(channels, num_heads, mlp_channels, eps)
        init_block(self.cross_attn)
        init_block(self.self_attn)

    def forward(self, x: Float[Tensor, "b t c"], ctx: Context, new: New | None) -> Float[Tensor, "b t c"]:
        """Apply both blocks; without new tokens, both attend to the sequence."""
        x = self.cross_attn(x, ctx) if new is None else self._cross(x, ctx, *new)
        return self.self_attn(x, ctx)

    def _cross(
        self, x: Float[Tensor, "b t c"], ctx: Context, new: Float[Tensor, "b k c"], at: Context
    ) -> Float[Tensor, "b t c"]:
        block = self.cross_attn
        x = x + block.attn_delta(x, ctx._replace(mask=at.mask), block.k(new, at), block.v(new, at))
        return x + block.mlp_delta(x, ctx)


class DiMOOShortcut(ShortcutNetwork):
    """features + S(features, new tokens, mask ratio), with published keys (docs/originals/dimoo.md, Shortcut network).

    `bottleneck_ratio` R divides the width, but neither `num_heads` nor `mlp_channels`; there are no projections at
    R = 1. `depth` D is the number of pairs of cross and self attention. `rope_theta` and `eps` have the base's values.
    There are three ablations: without `cross_attention` the first attention is a second self attention, without `time`
    the mask ratio is left out, and without `prompt` the tokens of the prompt are not among the new tokens.
    """

    def __init__(
        self,
        channels: Count,
        bottleneck_ratio: Count = 2,
        depth: Count = 1,
        num_heads: Count = 32,
        mlp_channels: Count = 12288,
        rope_theta: Positive = 500000.0,
        eps: NotNegative = 1e-5,
        time: bool = True,
        cross_attention: bool = True,
        prompt: bool = True,
    ):
        super().__init__()
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        inner = inner_width(channels, bottleneck_ratio, num_heads)
        self.head_channels = inner // num_heads
        if self.head_channels % 2:
            raise UserError(
                f"shortcut.num_heads={num_heads} makes heads of {self.head_channels} channels; "
                f"rotary positions need an even number (inner width {inner} = {channels} / {bottleneck_ratio})"
            )
        project = bottleneck_ratio > 1
        self.proj_in = nn.Linear(channels, inner) if project else nn.Identity()
        self.proj_out = nn.Linear(inner, channels) if project else nn.Identity()
        if cross_attention:
            self.new_token_proj_in = nn.Linear(channels, inner) if project else nn.Identity()
        self.blocks = nn.ModuleList(DiMOOBlock(inner, num_heads, mlp_channels, eps) for _ in range(depth))
        self.ln_f = RMSNorm(inner, eps)
        if time:
            self.time_embedder = TimeEmbedder(inner)
            self.adaLN_modulation = nn.Linear(inner, 2 * inner)

    @classmethod
    def published(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        sizes = published_sizes(tensors, "blocks.0.cross_attn.q_proj.weight")
        mlp = tensors.get("blocks.0.cross_attn.ff_proj.weight")
        return sizes if sizes is None or mlp is None else {**sizes, "mlp_channels": len(mlp)}

    def calibrate(self, embeddings: Float[Tensor, "... c"]) -> None:
        """Do nothing at any scale of the embeddings: new tokens are normalised before they become keys and values."""

    def forward(self, features: Float[Tensor, "b t c"], new: Control, mask_ratio: Ratio) -> Float[Tensor, "b t c"]:
        """Return the features of the next step.

        `features` are those of the last step. `new` are the tokens that the last step revealed and those of the prompt,
        as the base embeds them. `mask_ratio` is the share that is still masked now. Padded entries of `new` need a
        valid row of the sequence too, no matter which. Padded rows of the result mean nothing.
        """
        time = self.time_embedder(mask_ratio) if self.config["time"] else None
        return features + self.proj_out(self.hidden(self.proj_in(features), new, time))

    def hidden(
        self, x: Float[Tensor, "b t ci"], new: Control, time: Float[Tensor, "b ci"] | None
    ) -> Float[Tensor, "b t ci"]:
        """Return the output of all blocks, which `proj_out` turns into a change of the features.

        `x` are projected features, and `time` is the embedding of the mask ratio.
        """
        ctx = rotations(x.shape[1], self.head_channels, self.config["rope_theta"], x.device)
        source = self._source(new, ctx) if self.config["cross_attention"] else None
        if new.row_mask is not None:
            ctx = ctx._replace(mask=new.row_mask[:, None, None])
        for block in self.blocks:
            x = block(x, ctx, source)
        x = self.ln_f(x)
        return x if time is None else modulated(x, self.adaLN_modulation(time))

    def _source(self, new: Control, ctx: Context) -> New:
        """Return the new tokens that the first attention reads, with the context of their rows."""
        first = 0 if self.config["prompt"] else new.prompt
        mask = None if new.mask is None else new.mask[:, None, None, first:]
        return self.new_token_proj_in(new.embeddings[:, first:]), ctx.at(new.rows[:, first:])._replace(mask=mask)
