"""The variants that `compare` names: overrides of the config, composed and checked before anything is built."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from torch import nn

from migm.accelerators.predictors.shortcut import Shortcut
from migm.bases.base import Base
from migm.bases.inputs import InputSource
from migm.config.building import build, load
from migm.config.fitting import shown
from migm.config.points import points
from migm.config.roots import BenchConfig
from migm.runtime.errors import UserError
from migm.sampling.sampler import Sampler

MAY_DIFFER = ("base", "sampling", "shortcut", "accelerator", "runtime")


@dataclass(frozen=True)
class Plan:
    """A variant that composes, not built yet."""

    name: str
    cfg: DictConfig
    config: BenchConfig


@dataclass(frozen=True)
class Variant:
    """What one variant measures: vanilla sampling, the samplers of `points`, and the shortcut of their cheap steps."""

    name: str
    vanilla: Sampler
    samplers: Sequence[Sampler]
    predictor: Shortcut
    source: InputSource
    settings: str  # the config of the parts that may differ, which tells rows of a file apart

    @property
    def base(self) -> Base:
        return self.vanilla.base

    @property
    def network(self) -> nn.Module:
        assert self.predictor.module is not None  # for the type checker: `untrained` sets it
        return self.predictor.module


def plans(cfg: DictConfig, config: BenchConfig) -> list[Plan]:
    """Return the variants of `compare`, by default the config as it is; UserError for one that does not compose."""
    if not config.compare:
        return [Plan("default", cfg, config)]
    found = []
    for i, changes in enumerate(config.compare):
        refuse_others(f"compare[{i}]", changes)
        overrides = [f"{key}={as_override(f'compare[{i}]', key, value)}" for key, value in changes.items()]
        try:
            job = HydraConfig.get()
            composed = compose(job.job.config_name, [*job.overrides.task, *overrides]) if overrides else cfg
            found.append(Plan(" ".join(overrides) or "default", composed, load(composed, BenchConfig)))
        except HydraException as error:
            raise UserError(f"compare[{i}]: {str(error).splitlines()[0]}") from error
        except UserError as error:
            raise UserError(f"compare[{i}]: {error}") from error
    if len({plan.name for plan in found}) < len(found):
        raise UserError(f"compare={[plan.name for plan in found]} names a variant twice")
    return found


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


def built(planned: Sequence[Plan]) -> list[Variant]:
    """Build the variants; a base is built once for each different config, with the same random weights."""
    bases: dict[str, Base] = {}
    return [_variant(plan, bases) for plan in planned]


def _variant(plan: Plan, bases: dict[str, Base]) -> Variant:
    config, text = plan.config, json.dumps(plan.config.base, sort_keys=True)
    chosen = points(plan.cfg, config)
    if text not in bases:
        torch.manual_seed(config.seed)
        bases[text] = build(config.base)
    base = bases[text]
    torch.manual_seed(config.seed)
    shortcut = build(config.shortcut).eval()
    samplers = [untrained(Sampler(base, *parts), shortcut) for parts in chosen]
    vanilla = Sampler(base, build(config.sampling), runtime=build(config.runtime))
    learned = [s.accelerator.predictor for s in samplers if isinstance(s.accelerator.predictor, Shortcut)]
    for sampler in samplers:
        _ = sampler.replays  # refuses a runtime that does not fit, before anything is measured
    parts = {key: getattr(config, key) for key in MAY_DIFFER} | {"inputs": config.evalset["inputs"]}
    return Variant(
        plan.name,
        vanilla,
        samplers,
        learned[0] if learned else Shortcut(module=shortcut),
        build(config.evalset["inputs"]),
        json.dumps(parts, sort_keys=True),
    )


def untrained(sampler: Sampler, shortcut: nn.Module) -> Sampler:
    """Give the sampler the configured shortcut, untrained: the cost does not depend on the weights."""
    predictor = sampler.accelerator.predictor
    if not isinstance(predictor, Shortcut):
        return sampler
    return replace(sampler, accelerator=replace(sampler.accelerator, predictor=replace(predictor, module=shortcut)))
