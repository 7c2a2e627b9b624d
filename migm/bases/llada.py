"""Lumina-DiMOO's bidirectional LLaDA, with the keys of its checkpoint (docs/originals/dimoo.md, Transformer)."""

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, rms_norm, silu

from migm.bases.attention import attention
from migm.runtime.errors import UserError
from migm.runtime.files import write_json
from migm.runtime.kinds import Count, NotNegative, Positive
from migm.runtime.reading import read_text

PREFIX = "model.transformer."  # begins every key in the checkpoint

# The only values that this transformer supports for these keys of a config.json.
ONLY: dict[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "block_group_size": (1,),
    "activation_type": ("silu",),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "attention_layer_norm": (False,),
    "rope": (True,),
    "alibi": (False,),
    "scale_logits": (False,),
    "input_emb_norm": (False,),
    "include_bias": (False,),
    "include_qkv_bias": (False, None),
    "bias_for_layer_norm": (False, None),
    "weight_tying": (False,),
}


@dataclass(frozen=True)
class LLaDAConfig:
    """Sizes of a LLaDA transformer, under the names of its `config.json`."""

    d_model: Count
    n_heads: Count
    n_layers: Count
    mlp_hidden_size: Count
    embedding_size: Count  # rows of the input table and of the head
    rope_theta: Positive
    rms_norm_eps: NotNegative

    @classmethod
    def read(cls, path: Path) -> "LLaDAConfig":
        """Read the config of a checkpoint; a missing or unsupported entry is refused by name, never guessed."""
        content = read_config(path)
        try:
            values = {field.name: content[field.name] for field in fields(cls)}
        except KeyError as error:
            raise UserError(f"{path} lacks {error}") from error
        for key, allowed in {**ONLY, "n_kv_heads": (content["n_heads"], None)}.items():
            if key not in content:
                raise UserError(f"{path} lacks '{key}'")
            if content[key] not in allowed:
                raise UserError(f"{path}: {key}={content[key]!r} is not supported, only {allowed[0]!r}")
        return cls(**values)

    def check(self, path: Path) -> None:
        """Refuse a checkpoint whose `config.json` has another size."""
        for name, value in vars(self.read(path)).items():
            if value != getattr(self, name):
                setting = f"base.transformer.{name}={getattr(self, name)}"
                raise UserError(f"{setting}, but {path} says {value}; set base.transformer.{name}={value}")

    def write(self, path: Path) -> None:
        """Write a `config.json` that `read` accepts."""
        content = {**vars(self), **{key: allowed[0] for key, allowed in ONLY.items()}, "n_kv_heads": self.n_heads}
        write_json(path, {"model_type": "llada", **content})


def read_config(path: Path) -> dict[str, Any]:
    """Return the entries of a `config.json`."""
    try:
        return {**json.loads(read_text(path))}
    except (json.JSONDecodeError, TypeError) as error:
        raise UserError(f"{path} is not a JSON object ({error})") from error


class Context(NamedTuple):
    """The context of the blocks: rotations of the rows they work on, and which keys count."""

    cos: Tensor  # (t, head channels) or (b, n, head channels), float32
    sin: Tensor
    mask: Tensor | None = None  # (b, 1, 1, keys) True where a key counts

    def at(self, rows: Tensor | None) -> "Context":
        """Return the context of the rows (b, n) alone, or of all rows without `rows`."""
        return self if rows is None else self._replace(cos=embedding(rows, self.cos), sin=embedding(rows, self.sin))


def rotations(rows: int, head_channels: int, theta: float, device: torch.device) -> Context:
    """Return rotary tables of rows 0...rows-1, float32; channels j and j + head_channels / 2 have the same angle."""
    exponent = torch.arange(0, head_channels, 2, dtype=torch.float32, device=device) / head_channels
    angles = torch.arange(rows, dtype=torch.float32, device=device)[:, None] * theta**-exponent
    angles = torch.cat([angles, angles], -1)
    return Context(angles.cos(), angles.sin())


def rotate(x: Tensor, ctx: Context) -> Tensor:
    """Apply the rotary position embedding to x (b, heads, n, head channels), computed in at least float32."""
    cos, sin = (table.unsqueeze(-3) for table in (ctx.cos, ctx.sin))
    low, high = x.chunk(2, -1)
    return (x * cos + torch.cat([-high, low], -1) * sin).to(x.dtype)  # products with the tables are float32


class RMSNorm(nn.Module):
    """x / rms(x), multiplied by a gain; computed in at least float32."""

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(channels)), eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight.shape, self.weight, self.eps)


class LlamaBlock(nn.Module):
    """Pre-norm attention with rotary positions, then a gated feed-forward; no biases.

    `k`, `v`, `attn_delta` and `mlp_delta` work on any rows of the sequence (tier 2 of the base contract); `forward`
    applies all of them to all rows.
    """

    def __init__(self, channels: int, num_heads: int, mlp_channels: int, eps: float):
        super().__init__()
        self.num_heads = num_heads
        self.attn_norm, self.ff_norm = RMSNorm(channels, eps), RMSNorm(channels, eps)
        self.q_proj, self.k_proj, self.v_proj, self.attn_out = (
            nn.Linear(channels, channels, bias=False) for _ in range(4)
        )
        self.ff_proj = nn.Linear(channels, mlp_channels, bias=False)  # the gate
        self.up_proj = nn.Linear(channels, mlp_channels, bias=False)
        self.ff_out = nn.Linear(mlp_channels, channels, bias=False)

    def k(self, x: Tensor, ctx: Context) -> Tensor:
        """Return the keys (b, heads, n, head channels) of x (b, n, c), rotated by the rows of `ctx`."""
        return rotate(self._heads(self.k_proj(self.attn_norm(x))), ctx)

    def v(self, x: Tensor, ctx: Context) -> Tensor:
        return self._heads(self.v_proj(self.attn_norm(x)))

    def attn_delta(self, x: Tensor, ctx: Context, k: Tensor, v: Tensor) -> Tensor:
        """Return what attention to the keys and values of the whole sequence adds to x (b, n, c)."""
        return self._attend(self.attn_norm(x), ctx, k, v)

    def mlp_delta(self, x: Tensor, ctx: Context) -> Tensor:
        """Return what the feed-forward adds to x (b, n, c)."""
        h = self.ff_norm(x)
        return self.ff_out(silu(self.ff_proj(h)) * self.up_proj(h))

    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """Map x (b, t, c) to (b, t, c), as the methods above do, but with one norm less."""
        h = self.attn_norm(x)
        k, v = rotate(self._heads(self.k_proj(h)), ctx), self._heads(self.v_proj(h))
        x = x + self._attend(h, ctx, k, v)
        return x + self.mlp_delta(x, ctx)

    def _attend(self, h: Tensor, ctx: Context, k: Tensor, v: Tensor) -> Tensor:
        q = rotate(self._heads(self.q_proj(h)), ctx)
        return self.attn_out(attention(q, k, v, mask=ctx.mask).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def init_block(block: LlamaBlock, layer: int | None = None) -> None:
    """Initialise a block by LLaDA's "mitchell" rule: normal with std 1 / sqrt(fan-in), cut at 3 std.

    The output projections of layer i get another factor 1 / sqrt(2 (i + 1)).
    """
    for name, part in block.named_children():
        if isinstance(part, nn.Linear):
            depth = 2 * (layer + 1) if layer is not None and name in ("attn_out", "ff_out") else 1
            normal(part.weight, 1 / math.sqrt(part.in_features * depth))


def normal(weight: Tensor, std: float) -> None:
    nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)


class LLaDA(nn.Module):
    """Token ids (b, t) -> features (b, t, c), the output of the last norm; logits are `features @ ff_out.T`."""

    def __init__(self, config: LLaDAConfig):
        super().__init__()
        if config.d_model % config.n_heads or config.d_model // config.n_heads % 2:
            raise UserError(f"d_model={config.d_model} must be a multiple of twice n_heads={config.n_heads}")
        self.config = config
        self.wte = nn.Embedding(config.embedding_size, config.d_model)
        sizes = (config.d_model, config.n_heads, config.mlp_hidden_size, config.rms_norm_eps)
        self.blocks = nn.ModuleList(LlamaBlock(*sizes) for _ in range(config.n_layers))
        self.ln_f = RMSNorm(config.d_model, config.rms_norm_eps)
        self.ff_out = nn.Linear(config.d_model, config.embedding_size, bias=False)
        self.rotations: Context | None = None  # of the longest sequence so far

    def init_weights(self) -> None:
        """Initialise fresh weights for training from scratch, by LLaDA's rule."""
        for layer, block in enumerate(self.blocks):
            init_block(block, layer)  # type: ignore[arg-type]
        for table in (self.wte, self.ff_out):
            normal(table.weight, 1 / math.sqrt(self.config.d_model))
        for part in self.modules():
            if isinstance(part, RMSNorm):
                nn.init.ones_(part.weight)

    def prepare(self, ids: Tensor, mask: Tensor | None = None, rows: Tensor | None = None) -> tuple[Tensor, Context]:
        """Return the first block's input and the context of ids (b, t), with a mask (b, t) that is False at padding.

        The input is (b, t, c), or (b, n, c) for `rows` (b, n) alone.
        """
        ctx = self._rotations(ids.shape[1], ids.device)
        ctx = ctx._replace(mask=None if mask is None else mask[:, None, None]).at(rows)
        return self.wte(ids if rows is None else ids.gather(1, rows)), ctx

    def _rotations(self, rows: int, device: torch.device) -> Context:
        """Return the rotary tables of so many rows, made once for the longest sequence."""
        kept = self.rotations
        if kept is None or len(kept.cos) < rows or kept.cos.device != device:
            with torch.inference_mode(False):  # training may need them too
                kept = rotations(rows, self.config.d_model // self.config.n_heads, self.config.rope_theta, device)
            self.rotations = kept
        return Context(kept.cos[:rows], kept.sin[:rows])

    def finalize(self, x: Tensor) -> Tensor:
        """Turn the last block's output into features."""
        return self.ln_f(x)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x, ctx = self.prepare(ids, mask)
        for block in self.blocks:
            x = block(x, ctx)
        return self.finalize(x)
