"""From YAML to objects: typed roots, a signature check of every `_target_`, and clear refusals.

The library below the commands never sees a DictConfig: `load` checks and resolves, `build`
instantiates.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from migm.checks import check_target, nearest, refuse_emptied_groups, refuse_split_sweep, targets
from migm.runtime import UserError

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


@dataclass
class Common:
    """Keys of every command."""

    name: str
    group: str
    seed: int
    num_threads: int | None
    device: str
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
    points: dict[str, list[Any]] | None = field(default_factory=dict)
    latency: list[str] = field(
        default_factory=list
    )  # protocols of time and memory; empty: the evalset's batch, amortised


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
    labels: list[int] | None = None
    prompt: str | None = None
    prompts: str | None = None  # a file
    seeds: list[int] | None = None
    batch_size: int | None = None
    image: str | None = None
    mask: str | None = None
    output: str = ""
    folder: str | None = None


@dataclass
class BenchConfig(Common):
    part: str = "compute"
    loading: Any = None
    waiting: Any = None
    batch_sizes: list[int] = field(default_factory=list)
    repeats: int = 7
    output: str = ""


@dataclass
class AblationsConfig(Common):
    sweeps: list[str] = field(default_factory=list)
    reference: str = ""
    folder: str = ""


@dataclass
class FitConfig(Common):
    num_images: int = 64
    batch_size: int = 32
    output: str = ""


@dataclass
class PlanConfig(Common):
    full: float = 1.0
    cheap: float = 0.04


@dataclass
class AnalyseConfig(Common):
    analysis: Any = "all"
    analyses: dict[str, Any] = field(default_factory=dict)
    folder: str = ""


@dataclass
class HumanevalConfig(Common):
    method: str | None = None
    baseline: str | None = None
    num_pairs: int | None = None
    question: str = ""
    url: str = ""
    folder: str = ""
    votes: list[str] = field(default_factory=list)


@dataclass
class ReferenceConfig(Common):
    images: str | None = None
    size: int | None = None
    batch_size: int = 50
    num_workers: int = 0


@dataclass
class PretrainConfig(Common):
    stages: list[str] = field(default_factory=list)
    pretrain: Any = None


def load(cfg: DictConfig, root: type[Root]) -> Root:
    """Check a composed config against its root dataclass and every component's signature, and resolve it.

    Raises UserError with the key and what would be right.
    """
    known = {f.name for f in fields(root)}
    for key in cfg:
        if key not in known:
            raise UserError(f"config key {key} is unknown{nearest(str(key), known)}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(root), cfg)
        plain = cast(dict[str, Any], OmegaConf.to_container(merged, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from error
    refuse_emptied_groups(plain)
    for key, node in targets(plain, ""):
        check_target(key, node)
    refuse_split_sweep(plain)
    torch.manual_seed(plain["seed"])  # random bases and fresh shortcuts
    if plain["num_threads"]:
        if plain["num_threads"] < 1:
            raise UserError(f"num_threads={plain['num_threads']} must be at least 1, or null")
        torch.set_num_threads(plain["num_threads"])
    return root(**plain)


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
