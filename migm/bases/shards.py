"""Sharded safetensors checkpoints, loaded straight to where and how they will run."""

import json
from collections.abc import Iterator
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
    module: nn.Module, weights: str | Path, key: str, prefix: str, device: torch.device, dtype: torch.dtype
) -> None:
    """Give a module on the meta device the tensors of a checkpoint, whose names are `prefix` + the module's.

    `weights` is a folder, or `hf://owner/repository`, with `model.safetensors` or an index and its
    shards. Each tensor goes to `device` and `dtype` on its own, so that no second copy is in memory.
    Names and shapes have to be the module's; anything else is refused before the first tensor is
    kept, or, where a shard is not what the index says, with the shard's name.
    """
    wanted = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    files = _files(weights, key, set(wanted))
    with progress(Plain(stderr=True), "tensors") as bar:
        task = bar.add_task("load weights", total=len(wanted))
        for file, names in files.items():
            for name, tensor in _tensors(locate(f"{weights}/{file}", key), names, wanted, f"{key}={weights}/{file}"):
                _assign(module, name.removeprefix(prefix), tensor.to(device, dtype))
                bar.advance(task)


def _files(weights: str | Path, key: str, wanted: set[str]) -> dict[str, list[str]]:
    """File -> names of its tensors, `wanted` and no others."""
    try:
        index = locate(f"{weights}/{INDEX}", key)
    except FileNotFoundError:
        try:
            with safe_open(locate(f"{weights}/{SINGLE}", key), "pt") as file:
                found = dict.fromkeys(file.keys(), SINGLE)
        except SafetensorError as error:
            raise UserError(f"{key}={weights}/{SINGLE} is not a complete safetensors file ({error})") from error
    else:
        try:
            found = dict(json.loads(read_text(index))["weight_map"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{key}={weights}/{INDEX} is no index of shards ({error})") from error
    problems = [f"lacks {name}" for name in sorted(wanted - set(found))]
    problems += [f"has {name}, which this model has not" for name in sorted(set(found) - wanted)]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{key}={weights} does not fit the configured model: {'; '.join(problems[:3])}{more}")
    files: dict[str, list[str]] = {}
    for name, file in found.items():
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
