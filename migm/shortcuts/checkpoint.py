"""A trained shortcut as one self-describing safetensors file.

A file tells the class of its network by the import path. That is looked up among the `ShortcutNetwork`s that are
loaded: those of `migm.shortcuts`, and those of modules that the config names or the program has imported. Nothing is
imported because a file says so, and nothing but a network is called.
"""

import json
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from migm.bases.weights import assign_strictly, is_published, read_tensors
from migm.runtime.errors import UserError
from migm.runtime.files import check_seal, tensors_hash, write_sealed
from migm.shortcuts.network import ShortcutNetwork, address, networks

FORMAT = "migm-shortcut/1"
FIRST = "MaskGITShortcut"  # the only network there was when files did not tell


def save_shortcut(shortcut: ShortcutNetwork, base_fingerprint: str, path: Path) -> None:
    """Write weights, class, constructor arguments and the base they were trained for, replacing `path` at once."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in shortcut.state_dict().items()}
    config, kind = json.dumps(shortcut.config), address(type(shortcut))
    about = {"format": FORMAT, "kind": kind, "config": config, "base": base_fingerprint}
    write_sealed(tensors, path, about)


def load_shortcut(
    path: str | Path | None, base_fingerprint: str, key: str, **arguments: Any
) -> tuple[ShortcutNetwork, str]:
    """The shortcut in eval mode and its fingerprint; a file of another kind or another base is refused.

    A published checkpoint is a bare state dict: class and sizes are read from it, and nothing in it
    tells its base. `arguments` of the constructor are those that it does not tell either, None for the
    network's default; a file that says otherwise is refused.
    """
    tensors, metadata = read_tensors(path, key)
    origin = f"{key}={path}"
    asked = {name: value for name, value in arguments.items() if value is not None}
    if is_published(path):
        network, config = published(tensors, origin)
        config.update((name, asked[name]) for name in signature(network).parameters if name in asked)
    else:
        if metadata.get("format") == FORMAT:
            check_seal(tensors, metadata, {"format", "kind", "config", "base"}, origin)
        network, config = described(metadata, base_fingerprint, origin)
    with torch.device("meta"):  # initial values of a large network would take seconds
        shortcut = network(**config)
    for name, value in asked.items():
        if shortcut.config.get(name) != value:
            holds = f"{name}={shortcut.config[name]}" if name in shortcut.config else f"no {name}"
            raise UserError(f"{origin} holds a {network.__name__} with {holds}, but {name}={value} is asked for")
    assign_strictly(shortcut.to_empty(device="cpu"), tensors, origin)
    text = metadata.get("config", json.dumps(shortcut.config))
    return shortcut.eval().requires_grad_(False), tensors_hash(tensors, text)


def described(
    metadata: Mapping[str, str], base_fingerprint: str, origin: str
) -> tuple[type[ShortcutNetwork], dict[str, Any]]:
    """Class and constructor arguments that a file of ours tells."""
    if metadata.get("format") != FORMAT:
        raise UserError(f"{origin} is no {FORMAT} file but {metadata.get('format', 'of unknown format')}")
    if metadata["base"] != base_fingerprint:
        raise UserError(
            f"{origin} was trained for base {metadata['base']}, this base is {base_fingerprint}; "
            "train a shortcut for it, or choose the other base"
        )
    network, config = network_of(metadata.get("kind", FIRST), origin), json.loads(metadata["config"])
    if not isinstance(config, dict) or set(config) - set(signature(network).parameters):
        raise UserError(f"{origin} holds a {network.__name__} of another version: its constructor takes no {config}")
    return network, config


def network_of(kind: str, origin: str) -> type[ShortcutNetwork]:
    """The class of this import path; files of earlier versions have the name alone of one of this package's."""
    loaded = {address(network): network for network in networks()}
    package = __name__.rpartition(".")[0]
    loaded |= {path.rpartition(".")[2]: network for path, network in loaded.items() if path.startswith(f"{package}.")}
    if kind not in loaded:
        names = ", ".join(path.rpartition(".")[2] for path in loaded if "." in path)
        raise UserError(
            f"{origin} holds a {kind}, which is no shortcut network of migm or of a loaded module ({names}); "
            "choose its YAML by shortcut=, or import its module first"
        )
    return loaded[kind]


def published(tensors: Mapping[str, Tensor], origin: str) -> tuple[type[ShortcutNetwork], dict[str, Any]]:
    """Class and constructor arguments that a published state dict tells: those of the first class that knows it."""
    classes = networks()
    for network in classes:
        if config := network.published(tensors):
            return network, config
    names = ", ".join(network.__name__ for network in classes)
    raise UserError(f"{origin} is no state dict of a shortcut: none of {names} has tensors of such names")
