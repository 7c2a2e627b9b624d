"""Random image tokenizers whose images show an error of their decoder."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from migm.bases import decoding
from migm.bases.amused import AmusedVQ
from migm.bases.tokenizer import ConvVQ
from migm.bases.vqgan import VQGAN

VQ = {"ch": 32, "num_res_blocks": 1, "z_channels": 32, "resolution": 64, "in_channels": 3, "out_ch": 3}
TOKENIZERS: dict[str, Callable[[], Any]] = {
    "conv": lambda: ConvVQ(num_codes=64, code_channels=4, channels=32),
    "vqgan": lambda: VQGAN({**VQ, "ch_mult": [1, 1, 2], "attn_resolutions": [16]}, 64, 32),
    "amused": lambda: AmusedVQ((32, 32, 64, 64, 64), 1, 8, 64),
    "published": AmusedVQ,
}


def book_of(tokenizer: Any) -> nn.Embedding:
    return next(module for module in tokenizer.modules() if isinstance(module, nn.Embedding))


def with_tokens(name: str, grid: tuple[int, int], count: int = 2, device: str = "cpu") -> tuple[Any, Tensor]:
    """A frozen float32 tokenizer, and tokens whose images are as bright and as varied as photos.

    With weights as drawn, images would be plain grey, and no error would show.
    """
    torch.manual_seed(0)
    tokenizer = TOKENIZERS[name]().eval().requires_grad_(False)
    nn.init.normal_(book_of(tokenizer).weight)
    tokens = torch.randint(0, book_of(tokenizer).num_embeddings, (count, grid[0] * grid[1]), device=device)
    tokenizer, layer = tokenizer.to(device), tokenizer.fine_parts()[-1]
    low, high = (0, 1) if isinstance(tokenizer, AmusedVQ) else (-1, 1)
    values: list[Tensor] = []
    with layer.register_forward_hook(lambda _, __, out: values.append(out)):
        tokenizer.to_images(tokens, grid)
    scale = (high - low) / 4 / values[0].std()
    shift = (low + high) / 2 - values[0].mean() * scale
    with torch.inference_mode():
        layer.weight.mul_(scale)
        layer.bias.mul_(scale).add_(shift)
    return tokenizer, tokens


def narrowed(tokenizer: Any) -> Any:
    """A copy that decodes as on CUDA."""
    tokenizer = copy.deepcopy(tokenizer)
    decoding.narrow(tokenizer)
    return tokenizer


def difference(ours: Tensor, right: Tensor) -> Tensor:
    """Grey levels between images that have contrast."""
    assert right.float().std() > 30
    return (ours.int() - right.int()).abs().float()
