"""Tiny aMUSEd bases, with random weights or in the layout of a published folder."""

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from clip_parts import TINY, save_encoder, save_words
from safetensors.torch import save_file
from torch import Tensor, nn

from migm.bases.amused import AmusedVQ
from migm.bases.amused_base import Amused
from migm.bases.clip_text import CLIPTextConfig, random_encoder
from migm.bases.uvit import UVitConfig, random_net

CODES = 24


def sizes(downsample: bool) -> UVitConfig:
    """A `UVit2DModel` of two layers whose tokens are 4 x 4, or 8 x 8 with downsampling."""
    return UVitConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        block_out_channels=32,
        block_num_heads=4,
        num_res_blocks=1,
        encoder_hidden_size=TINY.hidden_size,
        cond_embed_dim=TINY.projection_dim,
        micro_cond_encode_dim=16,
        vocab_size=CODES + 8,
        codebook_size=CODES,
        sample_size=8 if downsample else 4,
        downsample=downsample,
    )


def tokenizer(stride: int = 4, codes: int = CODES) -> AmusedVQ:
    return AmusedVQ([8] * (1 + round(math.log2(stride))), 1, 4, codes, 4)


def random_amused(downsample: bool = False, seed: int = 0, **changes: Any) -> Amused:
    """A random base on the CPU, in float64 unless `changes` say otherwise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        side = 4 * sizes(downsample).sample_size
        given = {"height": side, "width": side, "dtype": "float64", "device": "cpu", "random_weights": True, **changes}
        return Amused(given.pop("transformer", sizes(downsample)), TINY, given.pop("tokenizer", tokenizer()), **given)


def save_published(
    folder: Path,
    config: dict[str, Any],
    state: dict[str, Tensor],
    text: tuple[dict[str, Any], dict[str, Tensor]],
    vq: nn.Module,
) -> Path:
    """Write a base's files as they are published; `text` are the config and the weights of the text encoder."""
    (folder / "transformer").mkdir(parents=True)
    (folder / "vqvae").mkdir()
    (folder / "transformer" / "config.json").write_text(json.dumps({"_class_name": "UVit2DModel", **config}))
    save_file(state, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file(vq.state_dict(), folder / "vqvae" / "diffusion_pytorch_model.safetensors")
    save_encoder(folder / "text_encoder", text[1], text[0])
    save_words(folder / "tokenizer", text[0]["vocab_size"])
    return folder


def save_random(folder: Path, downsample: bool = False) -> tuple[Path, nn.Module, nn.Module, AmusedVQ]:
    """Write a random base and return its folder, transformer, text encoder and image tokenizer."""
    config, vq = sizes(downsample), tokenizer()
    net, text = random_net(config), random_encoder(TINY)
    save_published(folder, config.arguments, net.state_dict(), (text.config.to_dict(), text.state_dict()), vq)  # type: ignore[operator,union-attr]
    return folder, net, text, vq


def load_published(folder: Path, config: UVitConfig, text: CLIPTextConfig, vq: AmusedVQ, **changes: Any) -> Amused:
    """Load a base from its files, in float32 on the CPU."""
    return Amused(
        config,
        text,
        vq,
        **{
            "weights": folder,
            "text_encoder": folder / "text_encoder",
            "text_tokenizer": folder / "tokenizer",
            "tokenizer_weights": folder / "vqvae" / "diffusion_pytorch_model.safetensors",
            "dtype": "float32",
            "device": "cpu",
            **changes,
        },
    )


def named(kind: Any, content: dict[str, Any]) -> Any:
    """A config dataclass of the entries of a `config.json` that it has."""
    return kind(**{field.name: content[field.name] for field in fields(kind) if field.name in content})
