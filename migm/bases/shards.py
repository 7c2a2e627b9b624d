"""Load sharded safetensors checkpoints directly in the device and dtype of use."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from migm.bases.weights import locate
from migm.runtime.console import Plain
from migm.runtime.errors import UserError
from migm.runtime.progress import progress
from migm.runtime.reading import read_text

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def load_shards(
    module: nn.Module,
    weights: str | Path,
    key: str,
    prefix: str,
    device: torch.device,
    dtype: torch.dtype,
    loaded: Callable[[str], None] | None = None,
) -> None:
    """Load a checkpoint into a module on the meta device; its names are `prefix` + the module's names.

    `weights` is a folder, or `hf://owner/repository`, with `model.safetensors` or an index and its shards. Each tensor
    is moved to `device` and `dtype` by itself, so that memory never holds a second copy. Names and shapes have to be
    the module's. Anything else is refused before the first tensor is kept; a shard that differs from the index is
    refused by its name. `loaded` gets the name of every tensor once it is in the module.
    """
    wanted = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    files = _files(weights, key, set(wanted))
    with progress(Plain(stderr=True), "tensors") as bar:
        task = bar.add_task("load weights", total=len(wanted))
        for file, names in files.items():
            for name, tensor in _tensors(locate(f"{weights}/{file}", key), names, wanted, f"{key}={weights}/{file}"):
                _assign(module, name.removeprefix(prefix), tensor.to(device, dtype))
                if loaded:
                    loaded(name.removeprefix(prefix))
                bar.advance(task)


def _files(weights: str | Path, key: str, wanted: set[str]) -> dict[str, list[str]]:
    """Map each file to the names of its tensors, refusing names other than `wanted`."""
    try:
        index = locate(f"{weights}/{INDEX}", key)
    except FileNotFoundError:
        try:
            with safe_open(locate(f"{weights}/{SINGLE}", key), "pt") as file:
                file_of = dict.fromkeys(file.keys(), SINGLE)
        except SafetensorError as error:
            raise UserError(f"{key}={weights}/{SINGLE} is not a complete safetensors file ({error})") from error
    else:
        try:
            file_of = dict(json.loads(read_text(index))["weight_map"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{key}={weights}/{INDEX} is no index of shards ({error})") from error
    problems = [f"lacks {name}" for name in sorted(wanted - set(file_of))]
    problems += [f"has {name}, which this model has not" for name in sorted(set(file_of) - wanted)]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{key}={weights} does not fit the configured model: {'; '.join(problems[:3])}{more}")
    files: dict[str, list[str]] = {}
    for name, file in file_of.items():
        files.setdefault(file, []).append(name)
    return files


def _tensors(path: Path, names: list[str], wanted: dict[str, Tensor], origin: str) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            held = set(file.keys())
            if missing := sorted(set(names) - held):
                raise UserError(f"{origin} lacks {missing[0]}, which the index says it has")
            for name in names:
                shape, right = tuple(file.get_slice(name).get_shape()), tuple(wanted[name].shape)
                if shape != right:
                    raise UserError(f"{origin}: {name} is {shape} instead of {right}")
            for name in names:
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise UserError(f"{origin} is not a complete safetensors file ({error})") from error


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, last = name.rpartition(".")
    setattr(module.get_submodule(path), last, nn.Parameter(tensor, requires_grad=False))
