"""Offer aMUSEd, text to image, as a base (docs/originals/amused.md, Text to In-painting)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from migm.bases import decoding
from migm.bases.amused import AmusedVQ
from migm.bases.base import BaseSpec, Branch, Control, Inputs, Moment, in_every_copy, prompts_of, take
from migm.bases.clip_text import CLIPText, CLIPTextConfig, ReadsPrompts, TextBranch, random_encoder
from migm.bases.footprint import Holdings
from migm.bases.layers import Block, Layered
from migm.bases.linear import LinearKind, quantise
from migm.bases.tokenizer import ConvVQ
from migm.bases.uvit import TextContext, UVit, UVitConfig, published_net, random_net
from migm.bases.weights import load_strictly, sampled
from migm.config.building import build
from migm.runtime.device import DeviceName, DTypeName, pick_device, pick_dtype
from migm.runtime.errors import UserError
from migm.runtime.files import tensors_hash
from migm.runtime.kinds import Count, Whole
from migm.runtime.shapes import Positions, Tokens


class Amused(Layered, decoding.Tokenized, ReadsPrompts):
    """A frozen `UVit2DModel` with a CLIP text encoder and an image tokenizer.

    `weights` is a folder or `hf://owner/repository` with the transformer in `transformer/`; `text_encoder` and
    `text_tokenizer` are folders too, `tokenizer_weights` is the image tokenizer's file. `random_weights` builds the
    base without any of these files. Features are the rows before the head, one for each token; both guidance halves
    run in one pass. `crop` and `score` are micro-conditions, beside the size. `linear` is the kind of the layers'
    linears (`migm.bases.linear`).
    """

    ends_whole = True

    def __init__(
        self,
        transformer: UVitConfig,
        text: CLIPTextConfig,
        tokenizer: AmusedVQ | ConvVQ,
        height: Count,
        width: Count,
        negative_prompt: str = "",
        crop: Sequence[Whole] = (0, 0),
        score: float = 6.0,
        weights: str | Path | None = None,
        text_encoder: str | Path | None = None,
        text_tokenizer: str | Path | None = None,
        tokenizer_weights: str | Path | None = None,
        random_weights: bool = False,
        dtype: DTypeName = "auto",
        tokenizer_dtype: DTypeName | None = None,
        device: DeviceName = "auto",
        linear: LinearKind = "plain",
    ):
        grid = checked_grid(transformer, text, tokenizer, height, width)
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        if random_weights:
            net = random_net(transformer)
        else:
            net = published_net(transformer, f"{weights}/transformer", "base.weights")
            load_strictly(tokenizer, tokenizer_weights, "base.tokenizer_weights", mapped=True)
        nn.ModuleList([net]).to(self.device, self.dtype)  # diffusers' own `to` prints a warning
        self.transformer = net.eval().requires_grad_(False)
        self.text = CLIPText(text, text_encoder, text_tokenizer, random_weights, self.device, self.dtype)
        self.text_encoder: nn.Module = self.text.net  # one of the networks that the base holds
        self.tokenizer = decoding.placed(tokenizer, tokenizer_dtype or "float32", self.device)
        self.negative_prompt = negative_prompt
        if len(crop) != 2:
            raise UserError(f"base.crop={list(crop)} must be two numbers, from the left and from the top")
        self.micro = torch.tensor([width, height, *crop, score], device=self.device, dtype=self.dtype)
        self.linear: LinearKind = linear
        if linear != "plain":
            self.plain_fingerprint()
            quantise(self.transformer.transformer_layers, linear, "base.linear")  # type: ignore[arg-type]
        self.uvit, self.mask = UVit(self.transformer, grid), transformer.vocab_size - 1
        self.spec = BaseSpec(
            num_tokens=grid[0] * grid[1],
            grid=grid,
            vocab_size=transformer.codebook_size,
            channels=transformer.block_out_channels,
            num_layers=transformer.num_hidden_layers,
            positions_per_row=self.uvit.cell**2,
        )

    @staticmethod
    def parts(node: Mapping[str, Any]) -> Holdings:
        """Build what a base of this config holds, for its memory."""
        config, tokenizer = build(node["transformer"]), build(node["tokenizer"])
        net: Any = random_net(config)
        grid = node["height"] // tokenizer.stride, node["width"] // tokenizer.stride
        holder = nn.ModuleList([net])  # diffusers' own `to` prints a warning
        text = random_encoder(build(node["text"]))
        return Holdings(holder, [net.transformer_layers], tokenizer, grid, config.block_out_channels, text=text)

    def encode(self, inputs: Inputs, guided: bool) -> list[Branch]:
        prompts = prompts_of(inputs)
        ids = self.text.ids([*prompts, *[self.negative_prompt] * len(prompts)] if guided else prompts)
        rows = self.text.rows(ids)
        branch = self.branch(ids.to(self.device))
        return [dataclasses.replace(branch, copies=2 if guided else 1, text=rows.text, pooled=rows.pooled)]

    def branch(
        self, condition: Int[Tensor, "b q"], length: int | None = None, lengths: Sequence[int] | None = None
    ) -> TextBranch:
        positions = torch.arange(self.spec.num_tokens, device=self.device)
        rows = positions.expand(len(condition), -1)
        inner = self.uvit.row_of(positions).expand(len(condition), -1) if self.uvit.cell > 1 else None
        return TextBranch(condition, rows, block_rows=inner)

    def prepare(
        self, tokens: Tokens, branch: Branch, moment: Moment, rows: Int[Tensor, "cb r"] | None = None
    ) -> tuple[Float[Tensor, "{branch.copies}*b _ c2"], TextContext]:
        """Return the first layer's input and the layers' context, for `rows` alone or for all rows.

        All rows are computed, since each depends on the whole image.
        """
        ctx = self.uvit.context(*self.text.of(branch), self.micro)
        x = self.uvit.rows_in(self._ids(tokens).repeat(branch.copies, 1), ctx)
        return (x if rows is None else take(x, rows)), ctx

    def _ids(self, tokens: Int[Tensor, "b k"]) -> Int[Tensor, "b k"]:
        return tokens.where(tokens < self.spec.vocab_size, self.mask)

    @property
    def blocks(self) -> Sequence[Block]:
        return self.uvit.layers  # type: ignore[return-value]

    def finalize(self, x: Float[Tensor, "cb r c2"], ctx: TextContext) -> Float[Tensor, "cb l c"]:
        """Turn the last layer's output, at all rows, into features."""
        return self.uvit.features(x, ctx)

    def head(
        self, features: Float[Tensor, "b k c"], positions: Positions | None = None, rows: Positions | None = None
    ) -> Float[Tensor, "b k v"]:
        return self.uvit.head(features)

    def control(
        self, tokens: Int[Tensor, "b k"], positions: Positions, branch: Branch, mask: Bool[Tensor, "b k"] | None = None
    ) -> Control:
        return in_every_copy(self.uvit.embed(self._ids(tokens)), positions, branch.copies, mask)

    @functools.cache  # noqa: B019  a base lives as long as its command
    def plain_fingerprint(self) -> str:
        """Return the fingerprint of the same base with plain linears; it is cached before they are replaced."""
        settings = (self.micro.tolist(), self.negative_prompt)
        return tensors_hash(sampled(self.transformer), str(self.dtype), str(settings), self.text.fingerprint())


def checked_grid(
    transformer: UVitConfig, text: CLIPTextConfig, tokenizer: AmusedVQ | ConvVQ, height: int, width: int
) -> tuple[int, int]:
    """Return rows and columns of the token grid; refuse parts that do not fit together."""
    pairs = [
        ("transformer.codebook_size", transformer.codebook_size, "tokenizer.num_codes", _codes(tokenizer)),
        ("transformer.encoder_hidden_size", transformer.encoder_hidden_size, "text.hidden_size", text.hidden_size),
        ("transformer.cond_embed_dim", transformer.cond_embed_dim, "text.projection_dim", text.projection_dim),
    ]
    for name, value, other, wanted in pairs:
        if value != wanted:
            raise UserError(f"base.{name}={value} must be base.{other}={wanted}")
    unit = tokenizer.stride * (2 if transformer.downsample else 1)
    if height % unit or width % unit:
        raise UserError(f"base.height={height}, base.width={width} must be multiples of {unit}")
    return height // tokenizer.stride, width // tokenizer.stride


def _codes(tokenizer: AmusedVQ | ConvVQ) -> int:
    return tokenizer.quantize.num_codes if isinstance(tokenizer, ConvVQ) else tokenizer.num_codes
