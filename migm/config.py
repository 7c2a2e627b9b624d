"""From YAML to objects: typed roots, a signature check of every `_target_`, and clear refusals.

The library below the commands never sees a DictConfig: `load` checks and resolves, `build`
instantiates.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from migm.checks import check, refuse_split_sweep
from migm.kinds import (
    Component,
    Count,
    Filled,
    Latency,
    Length,
    NotNegative,
    PointEntry,
    Positive,
    Seed,
    Stage,
    Threads,
    Whole,
    nearest,
)
from migm.runtime import DeviceName, UserError

Root = TypeVar("Root", bound="Common")


def conf_path() -> str:
    """The config tree: inside an installed package, or beside it in a checkout."""
    here = Path(__file__).parent
    return str(next(p for p in (here / "conf", here.parent / "conf") if p.is_dir()))


def asset_path() -> str:
    """The folder of the bundled weights."""
    return str(Path(__file__).parent / "assets")


def wandb_offline() -> bool:
    """Whether W&B would have no key to send anything with."""
    return not os.environ.get("WANDB_API_KEY")


def choice(group: str, *, _root_: DictConfig) -> str:
    """What was chosen with + of a group such as `experiment`; `migm` where nothing was."""
    own = OmegaConf.select(_root_, "hydra.runtime.choices")  # while a sweep is planned; a job's config lacks it
    choices = own or (HydraConfig.get().runtime.choices if HydraConfig.initialized() else {})
    return choices.get(group) or "migm"


OmegaConf.register_new_resolver("migm_assets", asset_path, replace=True)
OmegaConf.register_new_resolver("migm_wandb_offline", wandb_offline, replace=True)
OmegaConf.register_new_resolver("migm_choice", choice, replace=True)
# In the defaults of common.yaml: `points` takes further accelerators without a +; their names are checked here.
open_points = DictConfig({}, flags={"struct": False})
ConfigStore.instance().store(name="open_points", node=OmegaConf.create({"points": open_points}))


@dataclass
class Common:
    """Keys of every command."""

    name: Filled
    group: Filled
    seed: Seed
    num_threads: Threads | None
    device: DeviceName
    base: Any
    sampling: Any
    shortcut: Any
    accelerator: Any
    objective: Any
    optimizer: Any
    lr_schedule: Any
    data: Any
    evalset: Any
    metric: Any
    inception: Any
    trainer: Any
    callbacks: Any
    logger: Any
    paths: Any
    # Accelerator -> list of N, [N, B], or {num_steps, num_full_steps, <key of the accelerator>: value}; empty: the one
    # chosen by accelerator and sampling.
    points: dict[str, list[PointEntry]] | None = field(default_factory=dict)
    # Protocols of time and memory; empty: the evalset's batch, amortised.
    latency: list[Latency] = field(default_factory=list)


@dataclass
class CollectConfig(Common):
    import_from: str | None = None  # a folder of the released code's tars to read instead of generating
    export_to: str | None = None  # a folder to write the store to, in the same layout
    publish_to: str | None = None  # a URL to copy the store to


@dataclass
class TrainConfig(Common):
    collect: bool = True  # fill the trajectory store first
    evaluate: bool = True  # measure `points` afterwards
    cost: bool = True  # and their time, FFE and memory
    report: bool = True  # and write the report


@dataclass
class EvaluateConfig(Common):
    cost: bool = True  # measure time, FFE and memory too


@dataclass
class ReportConfig(Common):
    results: list[str] = field(default_factory=list)
    folder: str = ""
    baseline: str = ""
    images: list[str] = field(default_factory=list)


@dataclass
class GenerateConfig(Common):
    labels: Annotated[list[Whole], Length()] | None = None
    prompt: str | None = None
    prompts: str | None = None  # a file
    seeds: Annotated[list[Whole], Length()] | None = None
    batch_size: Count | None = None
    image: str | None = None
    mask: str | None = None
    output: str = ""
    folder: str | None = None


@dataclass
class BenchConfig(Common):
    part: Literal["compute", "loading", "waiting"] = "compute"
    loading: Component = field(default_factory=dict)
    waiting: Component = field(default_factory=dict)
    batch_sizes: Annotated[list[Count], Length()] = field(default_factory=list)
    repeats: Count = 7
    output: str = ""


@dataclass
class AblationsConfig(Common):
    sweeps: list[str] = field(default_factory=list)
    reference: str = ""
    folder: str = ""


@dataclass
class FitConfig(Common):
    num_images: Count = 64
    batch_size: Count = 32
    output: str = ""


@dataclass
class PlanConfig(Common):
    full: Positive = 1.0
    cheap: NotNegative = 0.04


@dataclass
class AnalyseConfig(Common):
    analysis: str | list[str] = "all"
    analyses: dict[str, Component] = field(default_factory=dict)
    folder: str = ""


@dataclass
class HumanevalConfig(Common):
    method: str | None = None
    baseline: str | None = None
    num_pairs: Count | None = None
    question: str = ""
    url: str = ""
    folder: str = ""
    votes: list[str] = field(default_factory=list)


@dataclass
class ReferenceConfig(Common):
    images: str | None = None
    size: Count | None = None
    batch_size: Count = 50
    num_workers: Whole = 0


@dataclass
class PretrainConfig(Common):
    stages: list[Stage] = field(default_factory=list)
    pretrain: Component = field(default_factory=dict)


def load(cfg: DictConfig, root: type[Root]) -> Root:
    """Check a composed config against its root dataclass and every component's signature, and resolve it.

    Raises UserError with the key and what would be right.
    """
    cfg = with_own_points(cfg)
    try:
        plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from error
    check(plain, root, OmegaConf.to_container(cfg))
    refuse_split_sweep(plain, training=root is TrainConfig)
    torch.manual_seed(plain["seed"])  # random bases and fresh shortcuts
    if plain["num_threads"]:
        torch.set_num_threads(plain["num_threads"])
    return root(**plain)


def with_own_points(cfg: DictConfig) -> DictConfig:
    """The config of a job whose override `points={...}` takes the place of its experiment's; Hydra adds to them.

    Of single ones `points.<accelerator>=...` changes or adds one and `~points.<accelerator>` drops one.
    """
    task = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    given = [text for text in task if text.lstrip("+~").startswith("points")]
    kept: list[str] | None = None  # None: all
    for override in OverridesParser.create().parse_overrides(given) if given else []:
        group, _, one = override.key_or_group.partition(".")
        if group != "points" or (one and override.is_delete()):
            continue
        value: Any = [one] if one else override.value()
        if not one and not override.is_add():
            kept = list(value) if isinstance(value, dict) else None
        elif kept is not None:
            kept += list(value)
    if kept is None:
        return cfg
    copy = cfg.copy()
    copy.points = {name: cfg.points[name] for name in kept if name in cfg.points}
    return copy


def build(node: Any) -> Any:
    """Instantiate a checked component; an error of its constructor comes out as itself, a wrong type as one line."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, (ValueError, OSError)):
            raise cause from None
        where = getattr(cause, "full_key", None) or node.get("_target_", "config")
        raise UserError(f"{where}: {type(cause).__name__}: {cause}") from error


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
