"""The points of a config: accelerators with N and B, built from what is loaded already."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from migm.config.building import build, conf_path, load
from migm.config.fitting import fitted
from migm.config.roots import Common
from migm.evaluation.cost import Point
from migm.runtime.errors import UserError, nearest
from migm.runtime.kinds import Count


def variant(
    cfg: DictConfig, accelerator: str, num_steps: int, num_full_steps: int, changes: Mapping[str, Any] | None = None
) -> DictConfig:
    """The same config with another accelerator, N and B, and `changes` of keys of the accelerator."""
    file = Path(conf_path()) / "accelerator" / f"{accelerator}.yaml"
    if not file.exists():
        options = {p.stem for p in file.parent.glob("*.yaml")}
        raise UserError(f"points: accelerator {accelerator} is unknown{nearest(accelerator, options)}")
    copy = OmegaConf.create(cfg)
    OmegaConf.set_struct(copy, False)
    if copy.accelerator.get("name") != accelerator:  # else the one chosen, with its overrides
        copy.accelerator = OmegaConf.load(file)
    copy.sampling.num_steps, copy.sampling.num_full_steps = num_steps, num_full_steps
    for key, value in (changes or {}).items():
        OmegaConf.update(copy, f"accelerator.{key}", value, force_add=True)
    return copy


def points(cfg: DictConfig, config: Common) -> list[Point]:
    """The configurations of `points`, or the single one chosen by `accelerator` and `sampling`."""
    if not config.points:
        return [point(config)]
    found = []
    for name, entries in config.points.items():
        for entry in entries:
            n, b, changes = _entry(name, entry)
            made = point(load(variant(cfg, name, n, n if b is None else b, changes), type(config)), changes)
            if b not in (None, made.full_steps):
                sets = f"sets {made.full_steps} full steps" if made.full_steps else "decides while sampling"
                raise UserError(f"points.{name}={entry}: B is {b}, but its policy {sets}; give N alone")
            found.append(made)
    return found


def point(config: Common, changes: Mapping[str, Any] | None = None) -> Point:
    """The configuration chosen by `accelerator` and `sampling`; `changes` are what its label names besides."""
    accelerator = {**config.accelerator, "predictor": config.accelerator.get("predictor") or {}}
    settings = json.dumps(_without_files(accelerator), sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:12]
    named = " ".join(f"{key.split('.')[-1]}={value}" for key, value in (changes or {}).items())
    made = Point(build(config.sampling), build(config.accelerator), digest, named)
    _ = made.full_steps  # refuses what does not fit N, before anything runs
    return made


def _without_files(node: dict[str, Any]) -> dict[str, Any]:
    """Weights and fits are told apart by their own fingerprint, wherever they lie."""
    return {
        key: _without_files(value) if isinstance(value, dict) else value
        for key, value in node.items()
        if key not in ("weights", "fit")
    }


def _entry(name: str, entry: Any) -> tuple[int, int | None, dict[str, Any]]:
    """N, B if it is given, and changes of the accelerator."""
    if not isinstance(entry, dict):
        n, b = entry if isinstance(entry, list) else (entry, None)
        return n, b, {}
    changes = dict(entry)
    n = fitted(f"points.{name}.num_steps", changes.pop("num_steps", None), Count)
    b = fitted(f"points.{name}.num_full_steps", changes.pop("num_full_steps", None), Count | None)
    return n, b, changes
