"""Tiny random bases of Meissonic's kind."""

from dataclasses import replace
from typing import Any

import torch

from migm.bases.clip_text import CLIPTextConfig
from migm.bases.meissonic import Meissonic
from migm.bases.meissonic_config import MeissonicConfig
from migm.bases.tokenizer import ConvVQ

TEXT = CLIPTextConfig(24, 48, 2, 2, 32, vocab_size=200, max_position_embeddings=7)
CONFIG = MeissonicConfig(2, 16, 1, 2, 24, 32, (4, 6, 6), 28, 24)
JOINED, APART = CONFIG, replace(CONFIG, downsample=False, upsample=False)


class Timeless(Meissonic):
    """Without what makes all rows of a step differ from those of another: its timestep stands still."""

    def timestep(self, moment: Any) -> torch.Tensor:
        return torch.zeros_like(moment.step)


def meissonic_base(
    seed: int = 0, dtype: str = "float64", kind: type[Meissonic] = Meissonic, **changes: Any
) -> Meissonic:
    """A random base: 8x6 tokens of 24 codes; 2x2 share a row, or, with the config APART, none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vq = ConvVQ(num_codes=24, code_channels=4, channels=8, depth=1)
        torch.nn.init.normal_(vq.quantize.embedding.weight)
        parts: dict[str, Any] = {
            "transformer": CONFIG,
            "text": TEXT,
            "tokenizer": vq,
            "height": 32,
            "width": 24,
            "negative_prompt": "ugly",
            "random_weights": True,
            "dtype": dtype,
            "device": "cpu",
        }
        base = kind(**{**parts, **changes})
        for name, weight in base.transformer.named_parameters():
            # Biases of zero and gains of one would hide what is left out; the head is peaked, so that draws differ.
            torch.nn.init.normal_(weight, std=0.15 if "conv2" not in name else 0.6)
            if weight.ndim == 1 and "norm" in name and "linear" not in name:
                torch.nn.init.uniform_(weight, 0.5, 1.5)
    return base
