"""A trained shortcut as one self-describing safetensors file."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from migm.bases.weights import assign_strictly, is_published, read_tensors
from migm.runtime import UserError, tensors_hash
from migm.shortcuts.maskgit import MaskGITShortcut

FORMAT = "migm-shortcut/1"


def save_shortcut(shortcut: MaskGITShortcut, base_fingerprint: str, path: Path) -> None:
    """Write weights, constructor arguments and the base they were trained for, replacing `path` at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in shortcut.state_dict().items()}
    metadata = {"format": FORMAT, "config": json.dumps(shortcut.config), "base": base_fingerprint}
    save_file(tensors, temporary, metadata)
    os.replace(temporary, path)


def load_shortcut(
    path: str | Path | None, base_fingerprint: str, key: str, num_heads: int = 16
) -> tuple[MaskGITShortcut, str]:
    """The shortcut in eval mode and its fingerprint; a file of another kind or another base is refused.

    A published checkpoint is a bare state dict: all of its shape but `num_heads` is read from it,
    and nothing in it tells its base.
    """
    tensors, metadata = read_tensors(path, key)
    if is_published(path):
        config = published_config(tensors, num_heads, f"{key}={path}")
        metadata = {"format": FORMAT, "base": base_fingerprint, "config": json.dumps(config)}
    if metadata.get("format") != FORMAT:
        raise UserError(f"{key}={path} is no {FORMAT} file but {metadata.get('format', 'of unknown format')}")
    if metadata["base"] != base_fingerprint:
        raise UserError(
            f"{key}={path} was trained for base {metadata['base']}, this base is {base_fingerprint}; "
            "train a shortcut for it, or choose the other base"
        )
    shortcut = MaskGITShortcut(**json.loads(metadata["config"]))
    assign_strictly(shortcut, tensors, f"{key}={path}")
    return shortcut.eval().requires_grad_(False), tensors_hash(tensors, metadata["config"])


def published_config(tensors: Mapping[str, Tensor], num_heads: int, origin: str) -> dict[str, Any]:
    """Constructor arguments of the network that a published state dict belongs to (maskgit.md 4.3)."""
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    if not depth or "last_layer.1.weight" not in tensors:
        raise UserError(f"{origin} is no state dict of a shortcut: it has no blocks.* or no last_layer.*")
    inner = len(tensors["last_layer.1.weight"])
    channels = len(tensors["proj_out.weight"]) if "proj_out.weight" in tensors else inner
    return {
        "channels": channels,
        "bottleneck_ratio": round(channels / inner),
        "depth": depth,
        "num_heads": num_heads,
        "time": any(name.startswith("time_embedder.") for name in tensors),
        "cross_attention": channels == inner or "new_token_proj_in.weight" in tensors,
    }
