"""Offer Halton-MaskGIT, class to image, as a base (docs/originals/halton.md)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from migm.bases import decoding
from migm.bases.base import BaseSpec, Branch, Control, Inputs, Moment, in_every_copy
from migm.bases.footprint import Holdings
from migm.bases.halton_net import HaltonTransformer, Modulated
from migm.bases.layers import Block, Layered
from migm.bases.linear import LinearKind, quantise
from migm.bases.llamagen import LlamaGenVQ
from migm.bases.tokenizer import ConvVQ
from migm.bases.weights import assign_strictly, load_strictly, read_tensors
from migm.config.building import build
from migm.runtime.device import DeviceName, DTypeName, pick_device, pick_dtype
from migm.runtime.errors import UserError
from migm.runtime.files import tensors_hash
from migm.runtime.shapes import Positions, Tokens


@dataclass(frozen=True)
class ClassBranch(Branch):
    """A branch with all that the network reads of the classes, computed once for all steps."""

    modulation: Float[Tensor, "cb m c"] | None = None


class HaltonMaskGIT(Layered, decoding.Tokenized):
    """A frozen HaltonTransformer with an image tokenizer.

    `weights` is a published checkpoint or a safetensors file with the transformer's tensors, `tokenizer_weights` the
    tokenizer's file: local or `hf://owner/repository/file`. `random_weights` builds both without any file. The
    tokenizer runs in float32 unless `tokenizer_dtype` is set; `auto` is float32 too, but bfloat16 where CUDA decodes
    large maps. `linear` is the kind of the linears of attention and feed-forward (`migm.bases.linear`).
    """

    def __init__(
        self,
        transformer: HaltonTransformer,
        tokenizer: LlamaGenVQ | ConvVQ,
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
        side = round(transformer.num_tokens**0.5)
        refuse_odd_sizes(transformer, tokenizer, side)
        if not random_weights:
            load_transformer(transformer, weights)
            load_strictly(tokenizer, tokenizer_weights, "base.tokenizer_weights", mapped=True)
        self.transformer = transformer.to(self.device, self.dtype).eval().requires_grad_(False)
        self.linear: LinearKind = linear
        if linear != "plain":
            self.plain_fingerprint()
            for part in inner(self.transformer):
                quantise(part, linear, "base.linear")
        self.tokenizer = decoding.placed(tokenizer, tokenizer_dtype or "float32", self.device)
        self.spec = BaseSpec(
            num_tokens=transformer.num_tokens,
            grid=(side, side),
            vocab_size=transformer.vocab_size,
            channels=transformer.pos_emb.embedding_dim,
            num_layers=len(transformer.transformer.layers),
        )

    @staticmethod
    def parts(node: Mapping[str, Any]) -> Holdings:
        """Build what a base of this config holds, for its memory."""
        net = build(node["transformer"])
        side = round(net.num_tokens**0.5)
        return Holdings(net, inner(net), build(node["tokenizer"]), (side, side), net.pos_emb.embedding_dim)

    def review(self, inputs: Inputs) -> str:
        self._labels(inputs)
        return ""

    def _labels(self, inputs: Inputs) -> Int[Tensor, " b"]:
        n = self.transformer.num_classes
        if not isinstance(inputs, Tensor):
            raise UserError(f"prompts={list(inputs)[:1]}: this base draws classes; give labels from 0 to {n - 1}")
        outside = inputs[(inputs < 0) | (inputs >= n)]
        if len(outside):
            raise UserError(f"labels={outside[:5].tolist()}: this base knows the classes 0 to {n - 1}")
        return inputs.to(self.device)

    def encode(self, inputs: Inputs, guided: bool) -> list[Branch]:
        labels = self._labels(inputs)
        none = torch.full_like(labels, self.transformer.num_classes)
        condition = torch.cat([labels, none]) if guided else labels
        return [dataclasses.replace(self.branch(condition[:, None]), copies=2 if guided else 1)]

    def branch(
        self, condition: Int[Tensor, "b q"], length: int | None = None, lengths: Sequence[int] | None = None
    ) -> Branch:
        rows = torch.arange(self.spec.num_tokens, device=self.device).expand(len(condition), -1)
        with torch.autocast(self.device.type, enabled=False):  # a training's is for the shortcut alone
            modulation = self.transformer.modulation(condition[:, 0])
        return ClassBranch(condition, rows, modulation=modulation)

    def prepare(
        self, tokens: Tokens, branch: Branch, moment: Moment, rows: Int[Tensor, "cb r"] | None = None
    ) -> tuple[Float[Tensor, "{branch.copies}*b _ c"], Modulated]:
        """Return the first block's input and the blocks' context, for `rows` alone or for the whole sequence."""
        assert isinstance(branch, ClassBranch)  # for the type checker: `branch` makes no other
        assert branch.modulation is not None
        return self.transformer.prepare(tokens.repeat(branch.copies, 1), branch.modulation, rows)

    @property
    def blocks(self) -> Sequence[Block]:
        return self.transformer.transformer.layers  # type: ignore[return-value]

    def finalize(self, x: Float[Tensor, "cb r c"], ctx: Modulated) -> Float[Tensor, "cb r c"]:
        """Turn the last block's output into features."""
        return self.transformer.finalize(x, ctx)

    def head(
        self, features: Float[Tensor, "b k c"], positions: Positions | None = None, rows: Positions | None = None
    ) -> Float[Tensor, "b k v"]:
        return self.transformer.logits(features)

    def control(
        self, tokens: Int[Tensor, "b k"], positions: Positions, branch: Branch, mask: Bool[Tensor, "b k"] | None = None
    ) -> Control:
        return in_every_copy(self.transformer.embed(tokens, positions), positions, branch.copies, mask)

    @functools.cache  # noqa: B019  a base lives as long as its command
    def plain_fingerprint(self) -> str:
        """Return the fingerprint of the same base with plain linears; it is cached before they are replaced."""
        net = self.transformer
        rules = [f"{net.num_heads} heads", f"{net.num_logits} logits"]
        return tensors_hash(net.state_dict(), str(self.dtype), *rules)


def refuse_odd_sizes(net: HaltonTransformer, tokenizer: LlamaGenVQ | ConvVQ, side: int) -> None:
    """Raise a UserError for tokens that are no square, and for a tokenizer with another number of codes."""
    if side * side != net.num_tokens:
        raise UserError(f"base.transformer.num_tokens={net.num_tokens} must be a square, 256 for instance")
    book: Any = tokenizer.vq.quantize if isinstance(tokenizer, LlamaGenVQ) else tokenizer.quantize
    codes = book.embedding.num_embeddings
    if codes != net.vocab_size:
        raise UserError(f"base.transformer.vocab_size={net.vocab_size}, but base.tokenizer has {codes} codes")


def load_transformer(net: HaltonTransformer, weights: str | Path | None) -> None:
    """Load a published checkpoint or a safetensors file with the same names."""
    origin = f"base.weights={weights}"
    try:
        tensors = net.from_published(read_tensors(weights, "base.weights")[0])
    except UserError as error:
        raise error if str(error).startswith(origin) else UserError(f"{origin}: {error}") from None
    assign_strictly(net, tensors, origin, mapped=True)


def inner(net: HaltonTransformer) -> list[nn.Module]:
    """Return attention and feed-forward of every block, whose linears may be narrowed; what modulates norms may not."""
    return [part for block in net.transformer.layers for part in (block.attn, block.ff)]  # type: ignore[misc]
