"""Find weight files, read them without running code from them, and load them strictly."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from migm.runtime.errors import UserError

HUB = "hf://"
SAMPLE = 65_536  # number of elements of each tensor that a fingerprint reads
PICKLED = (".pth", ".pt", ".ckpt", ".bin")
NESTS = ("model_state_dict", "state_dict", "model")  # keys of the weights in published checkpoints


def load_strictly(module: nn.Module, path: str | Path | None, key: str, mapped: bool = False) -> None:
    """Load a file whose tensors are exactly those of `module`; anything else is refused by name.

    If `module.from_published` exists, it renames the tensors of a published (pickled) checkpoint. `mapped` is for
    frozen weights: they stay memory-mapped pages of the file, in its dtype, which all processes of a machine share
    until the weights are moved or converted.
    """
    tensors = read_tensors(path, key)[0]
    if is_published(path) and hasattr(module, "from_published"):
        tensors = module.from_published(tensors)  # type: ignore[operator]
    assign_strictly(module, tensors, f"{key}={path}", mapped)


def assign_strictly(module: nn.Module, tensors: Mapping[str, Tensor], origin: str, mapped: bool = False) -> None:
    """Copy `tensors` into `module`, or with `mapped` use them directly, if names and shapes are the same.

    The refusal begins with `origin`.
    """
    wanted = module.state_dict()
    problems = [f"lacks {name}" for name in wanted if name not in tensors]
    problems += [f"has {name}, which this model has not" for name in tensors if name not in wanted]
    problems += [
        f"{name} is {tuple(tensors[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{origin} does not fit the configured model: {'; '.join(problems[:3])}{more}")
    module.load_state_dict(dict(tensors), assign=mapped)


def read_tensors(path: str | Path | None, key: str) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Read all tensors and the metadata of a safetensors file or a published checkpoint, on the CPU.

    `path` is a file or `hf://<owner>/<repository>/<file>`; refusals name `key`. Checkpoints are memory-mapped, so that
    optimiser states beside the weights cost neither time nor memory.
    """
    file = locate(path, key)
    if is_published(path):
        return _read_checkpoint(file, f"{key}={path}"), {}
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{key}={path} is not a complete safetensors file ({error})") from error


def is_published(path: str | Path | None) -> bool:
    """Return whether a file is a pickled checkpoint, as the original authors publish them."""
    return Path(str(path)).suffix in PICKLED


def locate(path: str | Path | None, key: str) -> Path:
    """Return the local file of `path`, fetched from the Hugging Face hub for `hf://owner/repository/file`."""
    if str(path).startswith(HUB):
        return _fetch(str(path), key)
    if path is None or not Path(path).is_file():
        raise FileNotFoundError(f"{key}={path}: no such file")
    return Path(path)


def version(path: str | Path | None) -> object:
    """Return the time and size of a local file, so that its content can be cached until the file changes; else None."""
    if path is None or not Path(path).is_file():
        return None
    state = Path(path).stat()
    return state.st_mtime_ns, state.st_size


def _fetch(address: str, key: str) -> Path:
    parts = address.removeprefix(HUB).split("/", 2)
    if len(parts) < 3:
        raise UserError(f"{key}={address} should be {HUB}<owner>/<repository>/<file>")
    try:
        return Path(hf_hub_download("/".join(parts[:2]), parts[2]))
    except (OSError, ValueError, EntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"{key}={address} is not in the local cache and could not be fetched ({reason}); "
            f"give the path of the file as {key}, or build the shape alone with base.random_weights=true"
        ) from error


def _read_checkpoint(file: Path, origin: str) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{origin} is refused: it holds more than plain tensors, and code in it could run") from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{origin} is not a complete torch checkpoint ({str(error).splitlines()[0]})") from error
    tensors: Any = next((content[nest] for nest in NESTS if nest in content), content) if _named(content) else None
    if not _named(tensors) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(f"{origin} holds no state dict, neither at its top nor as {' or '.join(NESTS)}")
    return dict(tensors)


def _named(content: Any) -> bool:
    return isinstance(content, Mapping) and all(isinstance(name, str) for name in content)


def sampled(module: nn.Module) -> dict[str, Tensor]:
    """Return samples of every tensor, for a fingerprint; hashing all 16 GB of a base would take a minute."""
    return {name: sample(tensor) for name, tensor in module.state_dict().items()}


def sample(tensor: Tensor) -> Tensor:
    """Return up to `SAMPLE` evenly spread elements of a tensor."""
    return tensor.flatten()[:: max(1, tensor.numel() // SAMPLE)]
