"""A trained shortcut as one self-describing safetensors file."""

import json
import os
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from migm.bases.maskgit import assign_strictly, read_tensors
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


def load_shortcut(path: str | Path | None, base_fingerprint: str, key: str) -> tuple[nn.Module, str]:
    """The shortcut in eval mode and its fingerprint; a file of another kind or another base is refused."""
    tensors, metadata = read_tensors(path, key)
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
