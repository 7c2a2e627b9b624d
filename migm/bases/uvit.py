"""Run aMUSEd's transformer, diffusers' `UVit2DModel`, layer by layer (docs/originals/amused.md, Transformer)."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from migm.bases.attention import attention
from migm.bases.weights import load_strictly, locate
from migm.runtime.device import without_values
from migm.runtime.errors import UserError
from migm.runtime.kinds import Count, Positive
from migm.runtime.reading import read_text

WEIGHTS = "diffusion_pytorch_model.safetensors"
EMBEDDED = 5  # numbers of the micro-conditions
# The only values that are supported for these keys of a config.json.
ONLY = {"use_bias": False, "ln_elementwise_affine": True, "hidden_dropout": 0.0, "attention_dropout": 0.0}


@dataclass(frozen=True)
class UVitConfig:
    """Sizes of a `UVit2DModel`, under the names of its `config.json`.

    `block_out_channels` is the width of the convolutional part and of the features, `hidden_size` that of the layers.
    `downsample` gives four tokens a row of the layers.
    """

    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    intermediate_size: Count
    block_out_channels: Count
    block_num_heads: Count
    num_res_blocks: Count
    encoder_hidden_size: Count
    cond_embed_dim: Count
    micro_cond_encode_dim: Count
    vocab_size: Count  # rows of the input table, of which the last is the mask
    codebook_size: Count
    sample_size: Count
    downsample: bool
    layer_norm_eps: Positive = 1e-6

    def __post_init__(self) -> None:
        for width, heads in (("hidden_size", "num_attention_heads"), ("block_out_channels", "block_num_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise UserError(
                    f"base.transformer.{width}={getattr(self, width)} must be a multiple of "
                    f"base.transformer.{heads}={getattr(self, heads)}"
                )
        if self.codebook_size >= self.vocab_size:
            raise UserError(
                f"base.transformer.codebook_size={self.codebook_size} must be below "
                f"base.transformer.vocab_size={self.vocab_size}, whose last id is the mask"
            )

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `UVit2DModel`."""
        implied = {"in_channels": self.block_out_channels, "upsample": self.downsample}
        return {**asdict(self), **implied, **ONLY, "micro_cond_embed_dim": EMBEDDED * self.micro_cond_encode_dim}

    def check(self, path: Path) -> None:
        """Refuse a checkpoint whose `config.json` has another size, or what this base does not support."""
        try:
            content = dict(json.loads(read_text(path)))
        except (json.JSONDecodeError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a JSON object ({error})") from error
        if (kind := content.get("_class_name")) != "UVit2DModel":
            raise UserError(f"{path} is of {kind}, base.weights={path.parents[1]} must hold a UVit2DModel")
        for name, value in self.arguments.items():
            held = content.get(name, value)
            if held == value:
                continue
            if hasattr(self, name):
                raise UserError(f"base.transformer.{name}={value}, but {path} says {held}; set it to {held}")
            raise UserError(f"{path}: {name}={held} is not supported, only {value}")


class TextContext(NamedTuple):
    """The data that the layers need besides their rows: the same for all rows."""

    text: Float[Tensor, "cb q ch"]
    cond: Float[Tensor, "cb ch"]  # pooled prompt and micro-conditions

    def at(self, rows: Int[Tensor, "cb r"] | None) -> "TextContext":
        return self


class UVitLayer(nn.Module):
    """A layer of the transformer, diffusers' `BasicTransformerBlock`: self attention, cross attention, feed-forward.

    Keys and values of the text follow from the context alone, so cross attention adds to each row by itself; it counts
    as attention.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer: Any = layer

    def k(self, x: Tensor, ctx: TextContext) -> Tensor:
        """Return the keys (b, heads, n, head channels) of x (b, n, c)."""
        return self._heads(self.layer.attn1.to_k(self._normed(x, ctx)))

    def v(self, x: Tensor, ctx: TextContext) -> Tensor:
        return self._heads(self.layer.attn1.to_v(self._normed(x, ctx)))

    def attn_delta(self, x: Tensor, ctx: TextContext, k: Tensor, v: Tensor) -> Tensor:
        """Return what both attentions add to x (b, n, c)."""
        q = self._heads(self.layer.attn1.to_q(self._normed(x, ctx)))
        own = self.layer.attn1.to_out[0](attention(q, k, v).transpose(1, 2).flatten(2))
        queries = self.layer.norm2(x + own, ctx.cond)
        return own + self.layer.attn2(queries, encoder_hidden_states=ctx.text)

    def mlp_delta(self, x: Tensor, ctx: TextContext) -> Tensor:
        """Return what the feed-forward adds to x (b, n, c)."""
        return self.layer.ff(self.layer.norm3(x, ctx.cond))

    def forward(self, x: Tensor, ctx: TextContext) -> Tensor:
        return self.layer(x, encoder_hidden_states=ctx.text, added_cond_kwargs={"pooled_text_emb": ctx.cond})

    def _normed(self, x: Tensor, ctx: TextContext) -> Tensor:
        return self.layer.norm1(x, ctx.cond)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.layer.attn1.heads, -1)).transpose(1, 2)


class UVit:
    """A frozen `UVit2DModel` as the parts of a base: input, layers, output and head.

    Down- and upsampling blocks and their norms see the whole image, so both ends work on all rows.
    """

    def __init__(self, net: nn.Module, grid: tuple[int, int]):
        self.net: Any = net
        self.grid = grid
        self.layers = nn.ModuleList(UVitLayer(layer) for layer in self.net.transformer_layers)
        self.embedding = self.net.config.micro_cond_encode_dim
        self.cell = 2 if self.net.config.downsample else 1  # sides of a row of the layers, in tokens

    def row_of(self, positions: Int[Tensor, " l"]) -> Int[Tensor, " l"]:
        """Return the rows of the layers that tokens at these positions belong to."""
        width = self.grid[1]
        y, x = positions // width // self.cell, positions % width // self.cell
        return y * (width // self.cell) + x

    def context(
        self, text: Float[Tensor, "b q ct"], pooled: Float[Tensor, "b cp"], micro: Float[Tensor, " five"]
    ) -> TextContext:
        """Return the context of the layers from a prompt's rows and the micro-conditions."""
        from diffusers.models.embeddings import get_timestep_embedding

        rows = self.net.encoder_proj_layer_norm(self.net.encoder_proj(text))
        numbers = get_timestep_embedding(micro, self.embedding, flip_sin_to_cos=True, downscale_freq_shift=0)
        both = torch.cat([pooled, numbers.flatten().expand(len(pooled), -1).to(pooled)], 1)
        return TextContext(rows, self.net.cond_embed(both))

    def embed(self, ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k c"]:
        """Return what the first layers, which see each token by itself, make of ids."""
        embedded = self.net.embed(ids[:, None])
        return embedded[:, :, 0].transpose(1, 2)

    def rows_in(self, ids: Int[Tensor, "b l"], ctx: TextContext) -> Float[Tensor, "b r ch"]:
        """Return the input of the layers."""
        x = self.net.embed(ids.unflatten(1, self.grid))
        x = self.net.down_block(x, ctx.cond, ctx.text, None)
        return self.net.project_to_hidden(self.net.project_to_hidden_norm(x.flatten(2).transpose(1, 2)))

    def features(self, x: Float[Tensor, "b r ch"], ctx: TextContext) -> Float[Tensor, "b l c"]:
        """Turn all rows of the last layer's output into the input of the head."""
        x = self.net.project_from_hidden(self.net.project_from_hidden_norm(x))
        rows = (self.grid[0] // self.cell, self.grid[1] // self.cell)
        x = self.net.up_block(x.transpose(1, 2).unflatten(2, rows), ctx.cond, ctx.text, None)
        mlm = self.net.mlm_layer
        return mlm.layer_norm(mlm.conv1(x).permute(0, 2, 3, 1)).flatten(1, 2)

    def head(self, features: Float[Tensor, "b k c"]) -> Float[Tensor, "b k v"]:
        return linear(features, self.net.mlm_layer.conv2.weight[:, :, 0, 0])


def random_net(config: UVitConfig) -> nn.Module:
    """Return a `UVit2DModel` with random weights of torch's generator.

    Its global response norms begin as the identity, which would hide them: they are random here.
    """
    net = _net(config)
    for name, weight in net.named_parameters():
        if "channelwise_norm" in name:
            nn.init.normal_(weight, std=0.1)
    return net


def published_net(config: UVitConfig, folder: str | Path, key: str) -> nn.Module:
    """Return the `UVit2DModel` of a folder or hub address, loaded strictly."""
    config.check(locate(f"{folder}/config.json", key))
    with without_values():
        net = _net(config)
    load_strictly(net, f"{folder}/{WEIGHTS}", key, mapped=True)
    return net


def _net(config: UVitConfig) -> nn.Module:
    from diffusers.models.unets.uvit_2d import UVit2DModel  # seconds, which other bases need not wait for

    return UVit2DModel(**config.arguments)
