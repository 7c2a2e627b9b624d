"""A random base of MMaDA's kind at small size, and checkpoints of it in the published layout."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn

from migm.bases.llada import PREFIX, LLaDAConfig
from migm.bases.magvit import Levels, MagvitV2
from migm.bases.mmada import NAMES, MMaDA

TASK_MARKERS = {"mask": 36, "bos": 30, "eos": 31, "soi": 32, "eoi": 33, "t2i": 34, "pad": 35}
WORDS = ["?", "a", "red", "blue", "cat", "boat", "river", "old", "ship", "storm"]
SIZES = LLaDAConfig(48, 4, 2, 64, 80, 10000.0, 1e-5)  # 40 words and markers, 32 codes, 8 rows more
SETTINGS: dict[str, Any] = {
    "transformer": SIZES,
    "vocab_size": 32,
    "code_offset": 40,
    "height": 16,
    "width": 16,
    "markers": TASK_MARKERS,
    "max_text_len": 12,
    "dtype": "float64",
    "device": "cpu",
}
# Names of this package -> the published ones, in this order; the inverse of the renaming that reads a file.
PUBLISHED = (
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"(\.attentions\.0)\.group_norm\.", r"\1.norm."),
    (r"(\.attentions\.0)\.to_([qkv])\.", r"\1.\2."),
    (r"(\.attentions\.0)\.to_out\.0\.", r"\1.proj_out."),
    (r"\.mid_block\.resnets\.(\d)\.", lambda m: f".mid.block_{int(m[1]) + 1}."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.(down|up)_blocks\.(\d+)\.resnets\.", r".\1.\2.block."),
    (r"\.(down|up)_blocks\.(\d+)\.(down|up)samplers\.0\.", r".\1.\2.\3sample."),
)


def small_magvit() -> MagvitV2:
    """Of 32 codes, 4 x 4 pixels each, with another number of blocks at every level."""
    return MagvitV2(Levels(8, [1, 2, 1], [2, 1, 1]), Levels(8, [1, 1, 2], [1, 2, 1]), bits=5, norm_groups=8)


def task_base(seed: int = 0, **changes: Any) -> MMaDA:
    """4x4 tokens of 32 codes; words of prompts become ids below 30."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = MMaDA(**{**SETTINGS, "tokenizer": small_magvit(), "random_weights": True, **changes})
        for name, weight in base.transformer.named_parameters():
            if "norm" in name or "ln_f" in name:
                nn.init.uniform_(weight, 0.5, 1.5)  # ones would hide a norm that is left out
        nn.init.normal_(base.transformer.ff_out.weight, std=0.3)  # peaked enough that draws differ
    return base


def published_magvit(net: MagvitV2) -> dict[str, Tensor]:
    """Its tensors as they are published, with the buffers that are no weights."""
    tensors = {}
    for name, tensor in net.state_dict().items():
        new, matrix = f".{name}", re.search(r"attentions.*\.to_.*weight$", name)
        for pattern, replacement in PUBLISHED:
            new = re.sub(pattern, replacement, new)
        tensors[new[1:]] = (tensor[:, :, None, None] if matrix else tensor).contiguous()
    powers = 2 ** torch.arange(net.bits - 1, -1, -1)
    return {**tensors, "quantize.embedding": torch.zeros(net.num_codes, net.bits), "quantize.power_vals": powers}


def write_checkpoint(folder: Path, base: MMaDA) -> dict[str, Any]:
    """Write a base in the published layout, in two shards; return what of its settings names the files."""
    tensors = {PREFIX + name: tensor.contiguous() for name, tensor in base.transformer.state_dict().items()}
    names = sorted(tensors)
    of = {name: f"model-{i % 2 + 1:05d}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(of.values()):
        save_file({name: tensors[name] for name in names if of[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": of}))
    base.transformer.config.write(folder / "config.json")
    said = json.loads((folder / "config.json").read_text())
    own = {
        "llm_vocab_size": 38,
        "codebook_size": 32,
        "num_vq_tokens": 16,
        "mask_token_id": 36,
        "num_new_special_tokens": 0,
    }
    (folder / "config.json").write_text(json.dumps({**said, "model_type": "mmada", **own}))
    torch.save(published_magvit(base.tokenizer), folder / "pytorch_model.bin")
    words = {**{word: i for i, word in enumerate(WORDS)}, **{name: TASK_MARKERS[key] for key, name in NAMES.items()}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    files = {"weights": folder, "text_tokenizer": folder / "tokenizer.json"}
    return {**files, "tokenizer_weights": folder / "pytorch_model.bin", "random_weights": False}
