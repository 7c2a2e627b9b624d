"""Turn YAML into objects: load and check a composed config, instantiate its components."""

import os
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from migm.config.checks import check, refuse_split_sweep
from migm.config.earlier import STEPS
from migm.config.fitting import GROUP
from migm.config.roots import Common, TrainConfig
from migm.runtime.errors import UserError
from migm.runtime.resources import keep_freed_memory

YES, NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")
Root = TypeVar("Root", bound="Common")


def conf_path() -> str:
    """Return the config tree: inside an installed package, or beside the package in a checkout."""
    here = Path(__file__).parents[1]
    return str(next(p for p in (here / "conf", here.parent / "conf") if p.is_dir()))


def asset_path() -> str:
    """Return the folder of the bundled weights."""
    return str(Path(__file__).parents[1] / "assets")


def wandb_offline() -> bool:
    """Return whether W&B has no API key in the environment."""
    return not os.environ.get("WANDB_API_KEY")


def switch(variable: str) -> bool:
    """Return whether an environment variable says yes, in the words that Hugging Face's switches know too."""
    said = os.environ.get(variable, "").strip().lower()
    if said not in (*YES, *NO):
        raise UserError(f"{variable}={said} should be one of {', '.join(filter(None, (*YES, *NO)))}")
    return said in YES


def choice(group: str, *, _root_: DictConfig) -> str:
    """Return the option that + chose from a group such as `experiment`; `migm` without a choice."""
    # Set while a sweep is planned, missing in a job's config
    sweep_choices = OmegaConf.select(_root_, "hydra.runtime.choices")
    choices = sweep_choices or (HydraConfig.get().runtime.choices if HydraConfig.initialized() else {})
    return choices.get(group) or "migm"


def bundled(name: str, *, _root_: DictConfig) -> str | None:
    """Return the path of `name` beside the base's weights, there or not; None if these are no local files."""
    return beside(OmegaConf.select(_root_, "base.weights"), name)


def beside(weights: Any, name: str) -> str | None:
    """Return the path of `name` beside local weights, there or not; None for other weights."""
    if not isinstance(weights, str) or "://" in weights:
        return None
    return str((Path(weights) if Path(weights).is_dir() else Path(weights).parent) / name)


def longest_gap(*, _root_: DictConfig) -> int:
    """Return the most cheap steps in a row by the [N, B] of a shortcut's `points`, else by those of `sampling`.

    Full steps are spread evenly. A point that gives N alone leaves them to a policy, and is not counted. Trajectories
    of `sampling.num_steps` hold gaps of up to a step less.
    """
    listed = OmegaConf.select(_root_, "points") or {}
    entries = [entry for name, entries in listed.items() if str(name).startswith("shortcut") for entry in entries]
    named = [tuple(e.get(k) for k in STEPS) if isinstance(e, DictConfig) else e for e in entries]
    pairs = [tuple(e) for e in named if not isinstance(e, int) and len(e) == 2 and None not in e]
    sampling = tuple(OmegaConf.select(_root_, f"sampling.{key}") for key in STEPS)
    longest = max(-(-n // b) - 1 for n, b in pairs or [sampling])
    return max(1, min(longest, sampling[0] - 1))


OmegaConf.register_new_resolver("migm_assets", asset_path, replace=True)
OmegaConf.register_new_resolver("migm_wandb_offline", wandb_offline, replace=True)
OmegaConf.register_new_resolver("migm_switch", switch, replace=True)
OmegaConf.register_new_resolver("migm_choice", choice, replace=True)
OmegaConf.register_new_resolver("migm_bundled", bundled, replace=True)
OmegaConf.register_new_resolver("migm_max_gap", longest_gap, replace=True)
# Stand in the defaults of common.yaml. `points` takes further accelerators without a +, whose names are checked in
# `migm.config.points`. Unknown keys of `data` come to `check`, which has a hint for those of earlier versions.
open_nodes = {name: DictConfig({}, flags={"struct": False}) for name in ("points", "data")}
ConfigStore.instance().store(name="open_nodes", node=OmegaConf.create(open_nodes))


def load(cfg: DictConfig, root: type[Root]) -> Root:
    """Check a command's config and return it, after setting torch's seed and number of threads, and malloc.

    Raises UserError with the key and what is allowed.
    """
    config = checked(with_own_points(cfg), root)
    refuse_unused_budget(config)
    refuse_split_sweep(config.trainer, training=root is TrainConfig)
    torch.manual_seed(config.seed)  # for random bases and new shortcuts
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    keep_freed_memory()
    return config


def refuse_unused_budget(config: Common) -> None:
    """UserError where a command that draws by no accelerator, or by several, is given `speed` or `quality`."""
    given = {key: getattr(config, key) for key in ("speed", "quality") if getattr(config, key) is not None}
    if given and not config.draws_by_one:
        key, value = next(iter(given.items()))
        raise UserError(
            f"{key}={value:g} chooses the sampler of generate, evaluate, bench, plan and analyse; here a front chooses "
            f"among points, as points.auto=[{{{key}: {value:g}}}]"
        )


def checked(cfg: DictConfig, root: type[Root]) -> Root:
    """Resolve a composed config; UserError for values that its root or a component's signature does not allow."""
    refuse_values_of_groups(cfg)
    plain = resolved(cfg, "config")
    check(plain, root, OmegaConf.to_container(cfg), root.unbuilt)
    return root(**plain)


def resolved(cfg: DictConfig, name: str) -> dict[str, Any]:
    """Resolve a config; UserError with the key of a value for which that fails, or else the `name` of the whole."""
    try:
        return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or name
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from error


def refuse_values_of_groups(cfg: DictConfig) -> None:
    """UserError where a key such as `data.storage` has the name of a file, which `data/storage=` chooses."""
    for folder in Path(conf_path()).glob("*/*/"):
        group, name = folder.parent.name, folder.name
        try:
            value = cfg[group].get(name) if isinstance(cfg.get(group), DictConfig) else None
        except OmegaConfBaseException:  # an interpolation of nothing, which `resolved` refuses by its key
            continue
        if isinstance(value, str):
            raise UserError(
                f"{group}.{name}={value} must be {GROUP}; a file of conf/{group}/{name} is chosen by "
                f"{group}/{name}={value}"
            )


def with_own_points(cfg: DictConfig) -> DictConfig:
    """Let the override `points={...}` of a job replace its experiment's points; Hydra alone would add them.

    An override `points.<accelerator>=...` changes or adds one accelerator, and `~points.<accelerator>` drops one.
    """
    task = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    overrides = [text for text in task if text.lstrip("+~").startswith("points")]
    kept: list[str] | None = None  # accelerators of the points to keep; None keeps all
    for override in OverridesParser.create().parse_overrides(overrides) if overrides else []:
        group, _, accelerator = override.key_or_group.partition(".")
        if group != "points" or (accelerator and override.is_delete()):
            continue
        value: Any = [accelerator] if accelerator else override.value()
        if not accelerator and not override.is_add():
            kept = list(value) if isinstance(value, dict) else None
        elif kept is not None:
            kept += list(value)
    if kept is None:
        return cfg
    copy = cfg.copy()
    copy.points = {name: cfg.points[name] for name in kept if name in cfg.points}
    return copy


def class_of(node: Any) -> Any:
    """The class or function that a component names, which `build` would call."""
    return get_object(node["_target_"])


def build(node: Any) -> Any:
    """Instantiate a checked component; errors of its constructor are raised unchanged, a wrong type as one line."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, (ValueError, OSError)):
            raise cause from None
        where = getattr(cause, "full_key", None) or node.get("_target_", "config")
        raise UserError(f"{where}: {type(cause).__name__}: {cause}") from error
