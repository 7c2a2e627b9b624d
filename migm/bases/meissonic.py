"""Offer Meissonic and Monetico, text to image, as bases (docs/originals/meissonic.md, Transformer to Sampling)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from migm.bases import decoding
from migm.bases.amused import AmusedVQ
from migm.bases.base import BaseSpec, Branch, Control, Inputs, Moment, prompts_of
from migm.bases.clip_text import CLIPText, CLIPTextConfig, ReadsPrompts, TextBranch, TextRows, random_encoder
from migm.bases.footprint import Holdings
from migm.bases.layers import Block, Layered
from migm.bases.linear import LinearKind, quantise
from migm.bases.meissonic_blocks import JointContext
from migm.bases.meissonic_config import MeissonicConfig
from migm.bases.meissonic_net import MeissonicTransformer
from migm.bases.tokenizer import ConvVQ
from migm.bases.weights import load_strictly, locate, sampled
from migm.config.building import build
from migm.runtime.device import DeviceName, DTypeName, pick_device, pick_dtype, without_values
from migm.runtime.errors import UserError
from migm.runtime.files import tensors_hash
from migm.runtime.kinds import Count, Whole
from migm.runtime.shapes import Positions, Tokens

WEIGHTS = "diffusion_pytorch_model.safetensors"
DRAWN_ON_CPU = 10**8  # parameters below which random weights are those of the CPU


class Meissonic(Layered, decoding.Tokenized, ReadsPrompts):
    """A frozen Meissonic transformer with a CLIP text encoder and an image tokenizer.

    `weights` is a folder or `hf://owner/repository` with the transformer in `transformer/`; `text_encoder` and
    `text_tokenizer` are folders too, `tokenizer_weights` is the image tokenizer's file. `random_weights` builds the
    base without any of these files. `crop` and `score` describe the wanted image beside its size, `negative_prompt` is
    what guidance leads away from. `native_height` is the only height that the published pipeline draws, None for any.

    The features are those of the blocks' sequence: 77 text rows, then one row for each cell of 2x2 tokens (Meissonic)
    or for each token (Monetico). The head is not affine. Both guidance halves run in one pass. `linear` is the kind of
    the blocks' linears (`migm.bases.linear`), except those of their norms.
    """

    inside: ClassVar[str] = "/transformer"  # where the transformer's files are in `weights`

    def __init__(
        self,
        transformer: MeissonicConfig,
        text: CLIPTextConfig,
        tokenizer: AmusedVQ | ConvVQ,
        height: Count,
        width: Count,
        native_height: Count | None = None,
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
        grid = checked_grid(transformer, text, tokenizer, (height, width), native_height)
        if len(crop) != 2:
            raise UserError(f"base.crop={list(crop)} must be two numbers: from the left, from the top")
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.transformer = self._transformer(transformer, None if random_weights else f"{weights}{self.inside}")
        if not random_weights:
            load_strictly(tokenizer, tokenizer_weights, "base.tokenizer_weights", mapped=True)
        self.text = CLIPText(text, text_encoder, text_tokenizer, random_weights, self.device, self.dtype)
        self.tokenizer = decoding.placed(tokenizer, tokenizer_dtype or "float32", self.device)
        self.negative_prompt = negative_prompt
        self.micro = torch.tensor([width, height, *crop, score], device=self.device, dtype=self.dtype)
        rows, self.places = cells_of(grid, transformer.cell, self.device)
        self.rows = text.max_position_embeddings + rows
        self.spec = BaseSpec(
            num_tokens=grid[0] * grid[1],
            grid=grid,
            vocab_size=transformer.codebook_size,
            channels=transformer.channels,
            num_layers=transformer.num_layers + transformer.num_single_layers,
            positions_per_row=transformer.cell**2,
            affine_head=False,
        )
        self.linear: LinearKind = linear
        if linear != "plain":
            self.plain_fingerprint()
            for blocks in self.transformer.stacks:
                quantise(blocks, linear, "base.linear")

    def _transformer(self, config: MeissonicConfig, folder: str | None) -> MeissonicTransformer:
        with without_values():
            net = MeissonicTransformer(config)
        if folder is None:
            small = sum(weight.numel() for weight in net.parameters()) < DRAWN_ON_CPU
            net.to_empty(device=torch.device("cpu") if small else self.device).init_weights()
        else:
            config.check(locate(f"{folder}/config.json", "base.weights"))
            load_strictly(net, f"{folder}/{WEIGHTS}", "base.weights", mapped=True)
        return net.to(self.device, self.dtype).eval().requires_grad_(False)

    @staticmethod
    def parts(node: Mapping[str, Any]) -> Holdings:
        """Build what a base of this config holds, for its memory."""
        config, tokenizer = build(node["transformer"]), build(node["tokenizer"])
        grid = node["height"] // tokenizer.stride, node["width"] // tokenizer.stride
        net = MeissonicTransformer(config)
        text, shared = random_encoder(build(node["text"])), config.cell**2
        return Holdings(net, net.stacks, tokenizer, grid, config.channels, text=text, positions_per_row=shared)

    def encode(self, inputs: Inputs, guided: bool) -> list[Branch]:
        prompts = prompts_of(inputs)
        ids = self.text.ids([*prompts, *[self.negative_prompt] * len(prompts)] if guided else prompts)
        branch = self._branch(ids.to(self.device), self.text.rows(ids))  # which reads the ids on the CPU
        return [dataclasses.replace(branch, copies=2 if guided else 1)]

    def branch(
        self, condition: Int[Tensor, "b q"], length: int | None = None, lengths: Sequence[int] | None = None
    ) -> TextBranch:
        return self._branch(condition, self.text.rows(condition))

    def _branch(self, condition: Int[Tensor, "b q"], read: TextRows) -> TextBranch:
        rows = self.rows.expand(len(condition), -1)
        return TextBranch(condition, rows, num_prompt=condition.shape[1], text=read.text, pooled=read.pooled)

    def prepare(
        self, tokens: Tokens, branch: Branch, moment: Moment, rows: Int[Tensor, "cb r"] | None = None
    ) -> tuple[Float[Tensor, "{branch.copies}*b _ c"], JointContext]:
        """Return the first block's input and the blocks' context, for `rows` alone or for the whole sequence."""
        text, vector = self._condition(branch)
        timed = self.transformer.timed(vector, self.timestep(moment).repeat(branch.copies))
        ids = self._ids(tokens).repeat(branch.copies, 1)
        return self.transformer.prepare(ids, text, timed, self.spec.grid, rows, self.blend(branch))

    def blend(self, branch: Branch) -> Callable[[Tensor], Tensor] | None:
        """Return what changes the embedded tokens (b, r, s, c) of the cells; here nothing does."""
        return None

    def timestep(self, moment: Moment) -> Int[Tensor, " b"]:
        """Return the timestep of the images: the steps that are left (docs/originals/meissonic.md, Timestep)."""
        return moment.num_steps - 1 - moment.step

    def _condition(self, branch: Branch) -> tuple[Float[Tensor, "cb q c"], Float[Tensor, "cb c"]]:
        rows = self.text.of(branch)
        return self.transformer.condition(rows.text, rows.pooled, self.micro.expand(len(rows.text), -1))

    def _ids(self, tokens: Int[Tensor, "b k"]) -> Int[Tensor, "b k"]:
        return tokens.where(tokens < self.spec.vocab_size, self.transformer.mask_id)

    @property
    def blocks(self) -> Sequence[Block]:
        return self.transformer.blocks  # type: ignore[return-value]

    def finalize(self, x: Float[Tensor, "cb r c"], ctx: JointContext) -> Float[Tensor, "cb r c"]:
        """Turn the last block's output into features."""
        return self.transformer.finalize(x)

    def head(
        self, features: Float[Tensor, "b k c"], positions: Positions | None = None, rows: Positions | None = None
    ) -> Float[Tensor, "b k *s v"]:
        if positions is not None:
            return self.transformer.head(features, self.places[positions])
        every = self.transformer.head(features)
        return every if self.spec.positions_per_row > 1 else every[:, :, 0]

    def control(
        self, tokens: Int[Tensor, "b k"], positions: Positions, branch: Branch, mask: Bool[Tensor, "b k"] | None = None
    ) -> Control:
        net, copies, q = self.transformer, branch.copies, branch.num_prompt
        embeddings = net.parts(net.embed(self._ids(tokens)), self.places[positions]).repeat(copies, 1, 1)
        rows = branch.rows.gather(1, positions.repeat(copies, 1))
        new = None if mask is None else mask.repeat(copies, 1)
        if not q:
            return Control(embeddings, rows, new)
        prompt = torch.arange(q, device=rows.device).expand(len(rows), -1)
        keys = None if new is None else torch.cat([torch.ones_like(prompt, dtype=torch.bool), new], 1)
        together = torch.cat([self._condition(branch)[0], embeddings], 1)
        return Control(together, torch.cat([prompt, rows], 1), keys, q)

    @functools.cache  # noqa: B019  a base lives as long as its command
    def plain_fingerprint(self) -> str:
        """Return the fingerprint of the same base with plain linears; it is cached before they are replaced."""
        return tensors_hash(sampled(self.transformer), str(self.dtype), str(self._settings()), self.text.fingerprint())

    def _settings(self) -> dict[str, Any]:
        """All that features depend on besides weights, precision and prompts."""
        return {"micro": self.micro.tolist(), "negative": self.negative_prompt, "grid": self.spec.grid}


def cells_of(grid: tuple[int, int], cell: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the cell (l,) of every position of a grid, row-major, and its place (l,) in that cell."""
    height, width = grid
    y, x = torch.arange(height)[:, None].expand(grid), torch.arange(width).expand(grid)
    cells, places = y // cell * (width // cell) + x // cell, y % cell * cell + x % cell
    return cells.flatten().to(device), places.flatten().to(device)


def checked_grid(
    transformer: MeissonicConfig,
    text: CLIPTextConfig,
    tokenizer: AmusedVQ | ConvVQ,
    size: tuple[int, int],
    native_height: int | None,
) -> tuple[int, int]:
    """Return rows and columns of the token grid; refuse parts that do not fit together and sizes that are not drawn."""
    codes = tokenizer.quantize.num_codes if isinstance(tokenizer, ConvVQ) else tokenizer.num_codes
    pairs = {
        "codebook_size": ("tokenizer.num_codes", codes),
        "joint_attention_dim": ("text.hidden_size", text.hidden_size),
        "pooled_projection_dim": ("text.projection_dim", text.projection_dim),
    }
    for name, (other, wanted) in pairs.items():
        if (value := getattr(transformer, name)) != wanted:
            raise UserError(f"base.transformer.{name}={value} must be base.{other}={wanted}")
    (height, width), unit = size, tokenizer.stride * transformer.cell
    if native_height is not None and height != native_height:
        raise UserError(
            f"base.height={height}: this base is published for height {native_height} alone, at any width that is a "
            f"multiple of {unit}; base.native_height=null draws others all the same"
        )
    if height % unit or width % unit:
        raise UserError(f"base.height={height}, base.width={width} must be multiples of {unit}")
    return height // tokenizer.stride, width // tokenizer.stride
