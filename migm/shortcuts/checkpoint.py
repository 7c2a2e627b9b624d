"""A trained shortcut as one self-describing safetensors file."""

import json
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from migm.bases.weights import assign_strictly, is_published, read_tensors
from migm.runtime.errors import UserError
from migm.runtime.files import replacing, tensors_hash
from migm.runtime.sealed import check_seal, sealed, write_tensors
from migm.shortcuts.dimoo import DiMOOShortcut
from migm.shortcuts.maskgit import MaskGITShortcut

FORMAT = "migm-shortcut/1"
Network = MaskGITShortcut | DiMOOShortcut

# Every network under a name that its published checkpoints alone have; that tensor is as long as the inner width.
NETWORKS: dict[str, type[Network]] = {
    "last_layer.1.weight": MaskGITShortcut,
    "blocks.0.cross_attn.q_proj.weight": DiMOOShortcut,
}


def save_shortcut(shortcut: Network, base_fingerprint: str, path: Path) -> None:
    """Write weights, class, constructor arguments and the base they were trained for, replacing `path` at once."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in shortcut.state_dict().items()}
    config, kind = json.dumps(shortcut.config), type(shortcut).__name__
    about = {"format": FORMAT, "kind": kind, "config": config, "base": base_fingerprint}
    with replacing(path) as temporary:
        write_tensors(tensors, temporary, sealed(tensors, about))


def load_shortcut(path: str | Path | None, base_fingerprint: str, key: str, **given: Any) -> tuple[Network, str]:
    """The shortcut in eval mode and its fingerprint; a file of another kind or another base is refused.

    A published checkpoint is a bare state dict: class and sizes are read from it, and nothing in it
    tells its base. `given` are constructor arguments that it does not tell either, None for the
    network's default; a file that says otherwise is refused.
    """
    tensors, metadata = read_tensors(path, key)
    origin, given = f"{key}={path}", {name: value for name, value in given.items() if value is not None}
    if is_published(path):
        network, config = published(tensors, origin)
        config.update((name, given[name]) for name in signature(network).parameters if name in given)
    else:
        if metadata.get("format") == FORMAT:
            check_seal(tensors, metadata, {"format", "kind", "config", "base"}, origin)
        network, config = described(metadata, base_fingerprint, origin)
    with torch.device("meta"):  # initial values of a large network would take seconds
        shortcut = network(**config)
    for name, value in given.items():
        if shortcut.config.get(name) != value:
            holds = f"{name}={shortcut.config[name]}" if name in shortcut.config else f"no {name}"
            raise UserError(f"{origin} holds a {network.__name__} with {holds}, but {name}={value} is asked for")
    assign_strictly(shortcut.to_empty(device="cpu"), tensors, origin)
    text = metadata.get("config", json.dumps(shortcut.config))
    return shortcut.eval().requires_grad_(False), tensors_hash(tensors, text)


def described(metadata: Mapping[str, str], base_fingerprint: str, origin: str) -> tuple[type[Network], dict[str, Any]]:
    """Class and constructor arguments that a file of ours tells."""
    if metadata.get("format") != FORMAT:
        raise UserError(f"{origin} is no {FORMAT} file but {metadata.get('format', 'of unknown format')}")
    if metadata["base"] != base_fingerprint:
        raise UserError(
            f"{origin} was trained for base {metadata['base']}, this base is {base_fingerprint}; "
            "train a shortcut for it, or choose the other base"
        )
    known = {network.__name__: network for network in NETWORKS.values()}
    kind = metadata.get("kind", MaskGITShortcut.__name__)  # the only one there was when files did not tell
    if kind not in known:
        raise UserError(f"{origin} holds a {kind}, which is unknown; one of {', '.join(known)}")
    return known[kind], json.loads(metadata["config"])


def published(tensors: Mapping[str, Tensor], origin: str) -> tuple[type[Network], dict[str, Any]]:
    """Class and constructor arguments that a published state dict tells (docs/originals/maskgit.md, Shortcut keys).

    With R = 1 it looks the same with and without cross attention, and is taken to be with.
    """
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    mark = next((name for name in NETWORKS if name in tensors), None)
    if not depth or mark is None:
        raise UserError(
            f"{origin} is no state dict of a shortcut: it has no blocks.*, or none of {', '.join(NETWORKS)}"
        )
    inner = len(tensors[mark])
    channels = len(tensors["proj_out.weight"]) if "proj_out.weight" in tensors else inner
    config = {
        "channels": channels,
        "bottleneck_ratio": round(channels / inner),
        "depth": depth,
        "time": any(name.startswith("time_embedder.") for name in tensors),
        "cross_attention": channels == inner or "new_token_proj_in.weight" in tensors,
    }
    if "blocks.0.cross_attn.ff_proj.weight" in tensors:
        config["mlp_channels"] = len(tensors["blocks.0.cross_attn.ff_proj.weight"])
    return NETWORKS[mark], config
