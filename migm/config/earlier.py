"""Read configs and hashes that earlier versions wrote, and translate them to today's names."""

import json
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any

from migm.runtime.files import content_hash

# Modules that were moved: today's import path -> the path until version 0.1.
MOVED = {
    "migm.accelerators.teacache.": "migm.accelerators.accumulate.",
    "migm.accelerators.predictors.recap.": "migm.accelerators.predictors.target.",
    "migm.accelerators.predictors.dllm_cache.": "migm.accelerators.predictors.v_verify.",
    "migm.accelerators.predictors.ml_cache.": "migm.accelerators.predictors.subset.",
}
FILES = ("weights", "trained", "bundled", "fit", "calibration", "written")  # files, told apart by their fingerprints
# Keys that configs lacked then, with the values that mean the same.
ADDED = (
    ("linear", "plain"),
    ("order", None),
    ("order", {"_target_": "migm.sampling.order.AllMasked"}),
    ("halves", None),
    ("sampling", "same"),
)
# Keys of command lines and configs of an earlier version -> what an error about them says.
RENAMED_KEYS = {
    "data.dtype": "it is data.storage.dtype now, and data/storage=features_int8 chooses int8",
    "data.reuse": "it is data.storage.reuse now, beside data/storage=online",
    "data.cache": "it is data.source.cache now, beside data/source=url",
    "data.cache_bytes": "it is data.source.cache_bytes now, beside data/source=url",
    "storage": "data/storage=<name> or +storage=<name> chooses a file, and data.storage.<key> changes a value of it",
}
STEPS = ("num_steps", "num_full_steps")


def by_name(node: Any) -> Any:
    """Return a config with the names of its components instead of their import paths, which differ between versions.

    Keys of today are left out where they say what was so without them.
    """
    if isinstance(node, dict):
        kept = {key: value for key, value in node.items() if (key, value) not in ADDED}
        return {key: value.rpartition(".")[2] if key == "_target_" else by_name(value) for key, value in kept.items()}
    return [by_name(value) for value in node] if isinstance(node, list) else node


def training_data(data: Any) -> Any:
    """The `data` of the config of a training, by name, as two trainings have to share it.

    One begun before storages were components says `storage`, `dtype` and `reuse` as values. Where shards are read and
    how tars are laid out may differ.
    """
    if not isinstance(data, dict):
        return data
    plain = {key: value for key, value in data.items() if key not in ("cache", "cache_bytes", "source", "tars")}
    if isinstance(name := plain.get("storage"), str):
        dtype, reuse = {"dtype": plain.pop("dtype", "bfloat16")}, {"reuse": plain.pop("reuse", 1)}
        parts = {"features": dtype, "tokens": {}, "online": {**dtype, **reuse}}
        plain["storage"] = {"_target_": name.capitalize(), "name": name, **parts.get(name, {})}
    return plain


def describes_run(text: str) -> bool:
    """Return whether a YAML file is the config that a training of any version left in its folder."""
    return "_target_: migm." in text


def sampling_identity(node: dict[str, Any]) -> str:
    """Return the identity of a sampling from its config in a store of an earlier version.

    The store may come from anybody: only parts of `migm.sampling` are made, and anything else is its own text, which
    equals no identity.
    """
    try:
        return _part({**node, "num_steps": 1, "num_full_steps": 1}).identity
    except (AttributeError, ImportError, KeyError, TypeError, ValueError):
        return json.dumps(node, sort_keys=True)


def _part(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    module, _, name = str(node["_target_"]).rpartition(".")
    if not module.startswith("migm.sampling."):
        raise ValueError(f"{module} holds no parts of samplers")
    part: Any = getattr(import_module(module), name)
    if not (isinstance(part, type) and is_dataclass(part)):
        raise TypeError(f"{name} is no part of a sampler")
    return part(**{key: _part(value) for key, value in node.items() if key != "_target_"})


def former_settings(accelerator: dict[str, Any]) -> str:
    """Return the hash that earlier results hold as `settings`, from an accelerator's resolved config."""
    return _digest(_former({**accelerator, "predictor": accelerator.get("predictor") or {}}))


def former_sampling(sampling: dict[str, Any]) -> str:
    """Return the hash that earlier results hold as `sampling`, from a resolved config."""
    return _digest(_former({key: value for key, value in sampling.items() if key not in STEPS}))


def _digest(node: dict[str, Any]) -> str:
    return content_hash(json.dumps(node, sort_keys=True))


def _former(node: Any) -> Any:
    if isinstance(node, dict):
        kept = {key: value for key, value in node.items() if key not in FILES}
        return {key: _former(value) for key, value in kept.items() if (key, value) not in ADDED}
    for now, before in MOVED.items():
        if isinstance(node, str) and node.startswith(now):
            return before + node.removeprefix(now)
    return node
