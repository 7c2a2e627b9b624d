"""Tiny CLIP text encoders in the layout of published folders."""

import json
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from migm.bases.clip_text import CLIPTextConfig, random_encoder

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
TINY = CLIPTextConfig(24, 72, 3, 2, 32, vocab_size=60, max_position_embeddings=9)


def save_words(folder: Path, vocab_size: int = 60, pad: str = "!", fast: bool = False) -> Path:
    """Write a tokenizer that knows single letters, as `vocab.json` and `merges.txt` or as `tokenizer.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    known = ["!", "!</w>", *(f"{letter}</w>" for letter in ascii_lowercase), *ascii_lowercase]
    known += [f"unused{n}" for n in range(vocab_size)]
    vocabulary = {word: n for n, word in enumerate([*known[: vocab_size - 2], BEGIN, END])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": pad}
    (folder / "tokenizer_config.json").write_text(json.dumps({**special, "model_max_length": 9}))
    if fast:
        from transformers import CLIPTokenizer

        CLIPTokenizer.from_pretrained(folder, local_files_only=True).save_pretrained(folder)
        for name in ("vocab.json", "merges.txt"):
            (folder / name).unlink(missing_ok=True)
    return folder


def save_encoder(folder: Path, state: dict[str, Tensor], config: dict[str, Any]) -> Path:
    """Write weights and `config.json` of an encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: x.contiguous() for name, x in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def save_random_encoder(folder: Path, config: CLIPTextConfig = TINY) -> nn.Module:
    """Write a random encoder and return it."""
    net = random_encoder(config)
    save_encoder(folder, net.state_dict(), net.config.to_dict())  # type: ignore[operator]
    return net
