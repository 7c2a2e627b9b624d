"""Offer class-conditional MaskGIT, a transformer and its tokenizer, as a base."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from migm.bases import decoding
from migm.bases.base import BaseSpec, Branch, Control, Inputs, Moment, in_every_copy
from migm.bases.footprint import Holdings
from migm.bases.layers import Block, Layered
from migm.bases.linear import LinearKind, quantise
from migm.bases.tokenizer import ConvVQ
from migm.bases.transformer import MaskTransformer, Positioned
from migm.bases.vqgan import VQGAN
from migm.bases.weights import load_strictly
from migm.config.building import build
from migm.runtime.device import DeviceName, DTypeName, pick_device, pick_dtype
from migm.runtime.errors import UserError
from migm.runtime.files import tensors_hash
from migm.runtime.shapes import Positions, Tokens


class MaskGIT(Layered, decoding.Tokenized):
    """A frozen MaskTransformer with an image tokenizer.

    `weights` is a file with the transformer's tensors, `tokenizer_weights` one with the tokenizer's: safetensors or
    published checkpoints, local or `hf://owner/repository/file`. `random_weights` builds both without any file. The
    tokenizer runs in the transformer's precision unless `tokenizer_dtype` is set; `auto` is float32, and bfloat16 where
    CUDA decodes large maps. `linear` is the kind of the blocks' linears (`migm.bases.linear`).
    """

    def __init__(
        self,
        transformer: MaskTransformer,
        tokenizer: ConvVQ | VQGAN,
        weights: str | Path | None = None,
        tokenizer_weights: str | Path | None = None,
        random_weights: bool = False,
        dtype: DTypeName = "auto",
        tokenizer_dtype: DTypeName | None = None,
        device: DeviceName = "auto",
        linear: LinearKind = "plain",
    ):
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        if not random_weights:
            load_strictly(transformer, weights, "base.weights", mapped=True)
            load_strictly(tokenizer, tokenizer_weights, "base.tokenizer_weights", mapped=True)
        self.transformer = transformer.to(self.device, self.dtype).eval().requires_grad_(False)
        self.linear: LinearKind = linear
        if linear != "plain":
            self.plain_fingerprint()
            quantise(self.transformer.transformer, linear, "base.linear")
        # A float64 base (tests) keeps its tokenizer in float32: ids do not depend on it.
        like_base = torch.float32 if self.dtype == torch.float64 else self.dtype
        self.tokenizer = decoding.placed(tokenizer, tokenizer_dtype or like_base, self.device)
        side = round(transformer.num_tokens**0.5)
        self.spec = BaseSpec(
            num_tokens=transformer.num_tokens,
            grid=(side, side),
            vocab_size=transformer.vocab_size,
            channels=transformer.pos_emb.shape[-1],
            num_layers=len(transformer.transformer.layers),
        )

    @staticmethod
    def parts(node: Mapping[str, Any]) -> Holdings:
        """Build what a base of this config holds, for its memory."""
        net, side = build(node["transformer"]), round(node["transformer"]["num_tokens"] ** 0.5)
        channels = net.pos_emb.shape[-1]
        return Holdings(net, [net.transformer], build(node["tokenizer"]), (side, side), channels, like_base=True)

    def review(self, inputs: Inputs) -> str:
        self.encode(inputs, guided=False)
        return ""

    def encode(self, inputs: Inputs, guided: bool) -> list[Branch]:
        n = self.transformer.num_classes
        if not isinstance(inputs, Tensor):
            raise UserError(f"prompts={list(inputs)[:1]}: this base draws classes; give labels from 0 to {n - 1}")
        outside = inputs[(inputs < 0) | (inputs >= n)]
        if len(outside):
            raise UserError(f"labels={outside[:5].tolist()}: this base knows the classes 0 to {n - 1}")
        labels = inputs.to(self.device)
        condition = torch.cat([labels, torch.full_like(labels, n)]) if guided else labels
        return [dataclasses.replace(self.branch(condition[:, None]), copies=2 if guided else 1)]

    def branch(
        self, condition: Int[Tensor, "b q"], length: int | None = None, lengths: Sequence[int] | None = None
    ) -> Branch:
        return Branch(condition, torch.arange(self.spec.num_tokens, device=self.device).expand(len(condition), -1))

    def prepare(
        self, tokens: Tokens, branch: Branch, moment: Moment, rows: Int[Tensor, "cb r"] | None = None
    ) -> tuple[Float[Tensor, "{branch.copies}*b _ c"], Positioned]:
        """Return the first block's input and the blocks' context, for `rows` alone or for the whole sequence."""
        ids = self.transformer.sequence(tokens.repeat(branch.copies, 1), branch.condition[:, 0])
        return self.transformer.prepare(ids, rows)

    @property
    def blocks(self) -> Sequence[Block]:
        return self.transformer.transformer.layers  # type: ignore[return-value]

    def finalize(self, x: Float[Tensor, "cb r c"], ctx: Positioned) -> Float[Tensor, "cb r c"]:
        """Turn the last block's output into features."""
        return self.transformer.finalize(x)

    def head(
        self, features: Float[Tensor, "b k c"], positions: Positions | None = None, rows: Positions | None = None
    ) -> Float[Tensor, "b k v"]:
        return self.transformer.head(features, positions if rows is None else rows)

    def control(
        self, tokens: Int[Tensor, "b k"], positions: Positions, branch: Branch, mask: Bool[Tensor, "b k"] | None = None
    ) -> Control:
        return in_every_copy(self.transformer.embed(tokens, positions), positions, branch.copies, mask)

    @functools.cache  # noqa: B019  a base lives as long as its command
    def plain_fingerprint(self) -> str:
        """Return the fingerprint of the same base with plain linears; it is cached before they are replaced."""
        rule = ["mask_logit"] if self.transformer.num_logits > self.transformer.vocab_size else []
        return tensors_hash(self.transformer.state_dict(), str(self.dtype), *rule)
