"""Build the variants that `compare` names, with one base for each different config."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from migm.accelerators.predictors.shortcut import Shortcut
from migm.bases.base import Base
from migm.bases.inputs import InputSource
from migm.config.building import build
from migm.config.compare import MAY_DIFFER, Plan
from migm.sampling.sampler import Sampler


@dataclass(frozen=True)
class Variant:
    """The parts of one variant: vanilla sampling, the samplers of `points`, and the shortcut of their cheap steps."""

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


def built(planned: Sequence[Plan]) -> list[Variant]:
    """Build the variants; a base is built once for each different config, with the same random weights."""
    bases: dict[str, Base] = {}
    return [_variant(plan, bases) for plan in planned]


def _variant(plan: Plan, bases: dict[str, Base]) -> Variant:
    config, text = plan.config, json.dumps(plan.config.base, sort_keys=True)
    if text not in bases:
        torch.manual_seed(config.seed)
        bases[text] = build(config.base)
    base = bases[text]
    torch.manual_seed(config.seed)
    shortcut = build(config.shortcut).eval()
    samplers = [untrained(Sampler(base, *parts), shortcut) for parts in plan.points]
    vanilla = Sampler(base, build(config.sampling), runtime=build(config.runtime))
    learned = [s.accelerator.predictor for s in samplers if isinstance(s.accelerator.predictor, Shortcut)]
    for sampler in samplers:
        _ = sampler.replays  # refuses a runtime that does not fit, before anything is measured
    parts = {key: getattr(config, key) for key in MAY_DIFFER} | {"inputs": config.evalset["inputs"]}
    parts |= {"chosen": [sampler.chosen for sampler in samplers]}
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
