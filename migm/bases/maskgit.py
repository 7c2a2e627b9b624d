"""Class-conditional MaskGIT: the transformer and its tokenizer behind the base contract."""

import functools
from pathlib import Path

import torch
from torch import Tensor

from migm.bases.base import BaseSpec, Branch, Control
from migm.bases.tokenizer import ConvVQ
from migm.bases.transformer import MaskTransformer
from migm.bases.vqgan import VQGAN
from migm.bases.weights import load_strictly
from migm.runtime import UserError, pick_device, pick_dtype, tensors_hash


class MaskGIT:
    """A frozen MaskTransformer with a tokenizer.

    `weights` is a file with the transformer's tensors, `tokenizer_weights` one with the
    tokenizer's: safetensors or published checkpoints, local or `hf://owner/repository/file`;
    `random_weights` builds both without any file. The tokenizer runs in the transformer's
    precision unless `tokenizer_dtype` says otherwise.
    """

    def __init__(
        self,
        transformer: MaskTransformer,
        tokenizer: ConvVQ | VQGAN,
        weights: str | Path | None = None,
        tokenizer_weights: str | Path | None = None,
        random_weights: bool = False,
        dtype: str = "auto",
        tokenizer_dtype: str | None = None,
        device: str = "auto",
    ):
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device, "base.dtype")
        if not random_weights:
            load_strictly(transformer, weights, "base.weights")
            load_strictly(tokenizer, tokenizer_weights, "base.tokenizer_weights")
        self.transformer = transformer.to(self.device, self.dtype).eval().requires_grad_(False)
        # A float64 base (tests) keeps its tokenizer in float32: ids do not depend on it.
        like_base = torch.float32 if self.dtype == torch.float64 else self.dtype
        own = pick_dtype(tokenizer_dtype, self.device, "base.tokenizer_dtype") if tokenizer_dtype else like_base
        self.tokenizer = tokenizer.to(self.device, own).eval().requires_grad_(False)
        side = round(transformer.num_tokens**0.5)
        self.spec = BaseSpec(
            num_tokens=transformer.num_tokens,
            grid=(side, side),
            vocab_size=transformer.vocab_size,
            channels=transformer.pos_emb.shape[-1],
            num_layers=len(transformer.transformer.layers),
            image_token_rows=(0, transformer.num_tokens),
        )

    def encode(self, labels: Tensor, guided: bool) -> list[Branch]:
        n = self.transformer.num_classes
        outside = labels[(labels < 0) | (labels >= n)]
        if len(outside):
            raise UserError(f"labels={outside[:5].tolist()}: this base knows the classes 0 to {n - 1}")
        labels = labels.to(self.device)
        if not guided:
            return [Branch(labels)]
        return [Branch(torch.cat([labels, torch.full_like(labels, n)]), copies=2)]

    def features(self, tokens: Tensor, branch: Branch, mask_ratio: Tensor) -> Tensor:
        return self.transformer(self.transformer.sequence(tokens.repeat(branch.copies, 1), branch.condition))

    def head(self, features: Tensor, positions: Tensor | None = None) -> Tensor:
        if positions is None:
            return self.transformer.head(features[:, : self.spec.num_tokens])
        batch = torch.arange(len(features), device=features.device)[:, None]
        return self.transformer.head(features[batch, positions], positions)

    def control(self, tokens: Tensor, positions: Tensor, branch: Branch | None = None) -> Control:
        copies = branch.copies if branch else 1
        return Control(self.transformer.embed(tokens, positions).repeat(copies, 1, 1), positions.repeat(copies, 1))

    def decode(self, tokens: Tensor) -> Tensor:
        return self.tokenizer.to_images(tokens, self.spec.grid)

    @functools.cache  # noqa: B019  a base lives as long as its command
    def fingerprint(self) -> str:
        rule = ["mask_logit"] if self.transformer.num_logits > self.spec.vocab_size else []
        return tensors_hash(self.transformer.state_dict(), str(self.dtype), *rule)

    @functools.cache  # noqa: B019
    def decoder_fingerprint(self) -> str:
        return tensors_hash(self.tokenizer.state_dict())
