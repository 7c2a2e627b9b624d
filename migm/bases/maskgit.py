"""Class-conditional MaskGIT: the transformer and its tokenizer behind the base contract."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from migm.bases.base import BaseSpec, Branch, Control
from migm.bases.tokenizer import ConvVQ
from migm.bases.transformer import MaskTransformer
from migm.runtime import UserError, pick_device, pick_dtype, tensors_hash


class MaskGIT:
    """A frozen MaskTransformer with a tokenizer.

    `weights` is a safetensors file with the transformer's tensors, `tokenizer_weights` one
    with the tokenizer's; `random_weights` builds both without any file.
    """

    def __init__(
        self,
        transformer: MaskTransformer,
        tokenizer: ConvVQ,
        weights: str | Path | None = None,
        tokenizer_weights: str | Path | None = None,
        random_weights: bool = False,
        dtype: str = "auto",
        device: str = "auto",
    ):
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        if not random_weights:
            load_strictly(transformer, weights, "base.weights")
            load_strictly(tokenizer, tokenizer_weights, "base.tokenizer_weights")
        self.transformer = transformer.to(self.device, self.dtype).eval().requires_grad_(False)
        # A float64 base (tests) keeps its tokenizer in float32: ids do not depend on it.
        tokenizer_dtype = torch.float32 if self.dtype == torch.float64 else self.dtype
        self.tokenizer = tokenizer.to(self.device, tokenizer_dtype).eval().requires_grad_(False)
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
        return tensors_hash(self.transformer.state_dict(), str(self.dtype))

    @functools.cache  # noqa: B019
    def decoder_fingerprint(self) -> str:
        return tensors_hash(self.tokenizer.state_dict())


def load_strictly(module: nn.Module, path: str | Path | None, key: str) -> None:
    """Load a safetensors file whose tensors are exactly those of `module`; anything else is refused by name."""
    assign_strictly(module, read_tensors(path, key)[0], f"{key}={path}")


def assign_strictly(module: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Copy `tensors` into `module` if names and shapes are the same; `origin` begins the refusal."""
    wanted = module.state_dict()
    problems = [f"lacks {name}" for name in wanted if name not in tensors]
    problems += [f"has {name}, which this model has not" for name in tensors if name not in wanted]
    problems += [
        f"{name} is {tuple(tensors[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{origin} does not fit the configured model: {'; '.join(problems[:3])}{more}")
    module.load_state_dict(dict(tensors))


def read_tensors(path: str | Path | None, key: str) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """All tensors and the metadata of a safetensors file, or a message that names `key`."""
    if path is None or not Path(path).is_file():
        raise FileNotFoundError(f"{key}={path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{key}={path} is not a complete safetensors file ({error})") from error
