"""From YAML to objects: load and check a composed config, instantiate its components."""

import os
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from migm.config.checks import check, refuse_split_sweep
from migm.config.roots import Common, TrainConfig
from migm.runtime.errors import UserError

Root = TypeVar("Root", bound="Common")


def conf_path() -> str:
    """The config tree: inside an installed package, or beside it in a checkout."""
    here = Path(__file__).parents[1]
    return str(next(p for p in (here / "conf", here.parent / "conf") if p.is_dir()))


def asset_path() -> str:
    """The folder of the bundled weights."""
    return str(Path(__file__).parents[1] / "assets")


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
