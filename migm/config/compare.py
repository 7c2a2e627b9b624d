"""The variants of `compare`: overrides of the config, composed and checked before anything is built."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from migm.config.building import load
from migm.config.fitting import shown
from migm.config.points import Chosen, points
from migm.config.roots import BenchConfig
from migm.runtime.errors import UserError

MAY_DIFFER = ("base", "sampling", "shortcut", "accelerator", "runtime", "speed", "quality")


@dataclass(frozen=True)
class Plan:
    """A variant that composes: its config and points; its base is not built yet."""

    name: str
    config: BenchConfig
    points: list[Chosen]


def plans(cfg: DictConfig, config: BenchConfig) -> list[Plan]:
    """Return the variants of `compare`, by default the config as it is; UserError for one that does not compose."""
    if not config.compare:
        return [Plan("default", config, points(cfg, config))]
    found: dict[str, tuple[DictConfig, BenchConfig]] = {}
    for i, changes in enumerate(config.compare):
        refuse_others(f"compare[{i}]", changes)
        overrides = [f"{key}={as_override(f'compare[{i}]', key, value)}" for key, value in changes.items()]
        try:
            job = HydraConfig.get()
            composed = compose(job.job.config_name, [*job.overrides.task, *overrides]) if overrides else cfg
            loaded = load(composed, BenchConfig)
        except HydraException as error:
            raise UserError(f"compare[{i}]: {str(error).splitlines()[0]}") from error
        except UserError as error:
            raise UserError(f"compare[{i}]: {error}") from error
        name = " ".join(overrides) or "default"
        if name in found:
            raise UserError(f"compare[{i}]: the variant {name} is named twice")
        found[name] = composed, loaded
    return [Plan(name, loaded, points(composed, loaded)) for name, (composed, loaded) in found.items()]


def refuse_others(where: str, changes: Mapping[str, Any]) -> None:
    """UserError for keys that would change what all variants share, such as the device or the points."""
    for key in changes:
        if re.split(r"[./]", key.lstrip("+~"))[0] not in MAY_DIFFER or key == "base.device":
            raise UserError(f"{where}: {key} may not differ between variants; these may: {', '.join(MAY_DIFFER)}")


def as_override(where: str, key: str, value: Any) -> str:
    """Return a value as an override on the command line has it."""
    if isinstance(value, (list, dict)):
        raise UserError(f"{where}: {key}={value} must be a number, a text, true, false or null")
    text = shown(value)
    if not isinstance(value, str) or re.fullmatch(r"[\w./:+-]+", text):
        return text
    return "'" + text.replace("'", r"\'") + "'"
