"""Save and load a trained shortcut as one safetensors file that describes itself.

A file names the class of its network by the import path. The class is looked up among the `ShortcutNetwork`s that are
loaded: those of `migm.shortcuts`, and those of modules that the config names or the program has imported. Nothing is
imported because a file names it, and only a network class is called.
"""

import json
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor

from migm.bases.weights import assign_strictly, is_published, read_tensors
from migm.runtime.device import without_values
from migm.runtime.errors import UserError
from migm.runtime.files import check_seal, tensors_hash, write_sealed
from migm.shortcuts.network import ShortcutNetwork, address, networks

FORMAT = "migm-shortcut/1"
BETWEEN = ","  # fingerprints of one base in several precisions
FIRST = "MaskGITShortcut"  # the only network when files did not name their class


def save_shortcut(
    shortcut: ShortcutNetwork, base_fingerprint: str | Sequence[str], path: Path, card: Mapping[str, Any] | None = None
) -> None:
    """Replace `path` at once by a file with weights, class, constructor arguments and the hash of the base.

    Several hashes are those of one base in several precisions. `card` says how the shortcut was made and measured.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in shortcut.state_dict().items()}
    config, kind = json.dumps(shortcut.config), address(type(shortcut))
    bases = base_fingerprint if isinstance(base_fingerprint, str) else BETWEEN.join(base_fingerprint)
    about = {"format": FORMAT, "kind": kind, "config": config, "base": bases}
    about |= {"card": json.dumps(card)} if card else {}
    write_sealed(tensors, path, about)


def load_shortcut(
    path: str | Path | None, base_fingerprint: str, key: str, plain_fingerprint: str | None = None, **arguments: Any
) -> tuple[ShortcutNetwork, str]:
    """Return the shortcut in eval mode and its fingerprint; a file of another format or another base is refused.

    A published checkpoint is a bare state dict: class and sizes follow from its tensors, and its base is unknown.
    `arguments` are constructor arguments that the tensors do not determine; None takes the network's default. A
    shortcut that has another value, or does not take such an argument, is refused. Refusals begin with `key`. A
    shortcut of the base with `plain_fingerprint`, the same one with plain linears, is taken too.
    """
    tensors, metadata = read_tensors(path, key)
    origin = f"{key}={path}"
    asked = {name: value for name, value in arguments.items() if value is not None}
    if is_published(path):
        network, config = published(tensors, origin)
        config.update((name, asked[name]) for name in signature(network).parameters if name in asked)
    else:
        if metadata.get("format") == FORMAT:
            check_seal(tensors, metadata, {"format", "kind", "config", "base", "card"}, origin)
        network, config = described(metadata, base_fingerprint, origin, plain_fingerprint)
    with without_values():  # initial values of a large network would take seconds
        shortcut = network(**config)
    for name, value in asked.items():
        if shortcut.config.get(name) != value:
            holds = f"{name}={shortcut.config[name]}" if name in shortcut.config else f"no {name}"
            raise UserError(f"{origin} holds a {network.__name__} with {holds}, but {name}={value} is asked for")
    assign_strictly(shortcut.to_empty(device="cpu"), tensors, origin)
    text = metadata.get("config", json.dumps(shortcut.config))
    return shortcut.eval().requires_grad_(False), tensors_hash(tensors, text)


def start_from(shortcut: ShortcutNetwork, path: str | Path, base_fingerprint: str, key: str) -> None:
    """Give a network the weights of a trained one; UserError unless both have one class and constructor arguments.

    Dropout may differ, since it has no weights.
    """
    trained, _ = load_shortcut(path, base_fingerprint, key)
    if type(trained) is not type(shortcut):
        raise UserError(f"{key}={path} holds a {type(trained).__name__}, but shortcut is a {type(shortcut).__name__}")
    for name, value in shortcut.config.items():
        if name != "dropout" and trained.config.get(name) != value:
            raise UserError(f"{key}={path} was trained with shortcut.{name}={trained.config.get(name)}, not {value}")
    shortcut.load_state_dict(trained.state_dict())


def described(
    metadata: Mapping[str, str], base_fingerprint: str, origin: str, plain_fingerprint: str | None = None
) -> tuple[type[ShortcutNetwork], dict[str, Any]]:
    """Return class and constructor arguments from the metadata of a file that `save_shortcut` wrote.

    Refuses another format, another base, an unknown class, and arguments that the class does not take.
    """
    if metadata.get("format") != FORMAT:
        raise UserError(f"{origin} is no {FORMAT} file but {metadata.get('format', 'of unknown format')}")
    if not {base_fingerprint, plain_fingerprint} & set(metadata["base"].split(BETWEEN)):
        raise UserError(
            f"{origin} was trained for base {metadata['base']}, this base is {base_fingerprint}; "
            "train a shortcut for it, or choose the other base"
        )
    network, config = network_of(metadata.get("kind", FIRST), origin), json.loads(metadata["config"])
    if not isinstance(config, dict) or set(config) - set(signature(network).parameters):
        raise UserError(f"{origin} holds a {network.__name__} of another version: its constructor takes no {config}")
    return network, config


def network_of(kind: str, origin: str) -> type[ShortcutNetwork]:
    """Return the class with this import path; a class of this package is also found by name, as in earlier files."""
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
    """Return the first class that recognises a published state dict, and its constructor arguments."""
    classes = networks()
    for network in classes:
        if config := network.published(tensors):
            return network, config
    names = ", ".join(network.__name__ for network in classes)
    raise UserError(f"{origin} is no state dict of a shortcut: none of {names} has tensors of such names")
