"""Files of a group of the config tree and of --config-dir, beside the one that was chosen."""

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from migm.config.building import build, conf_path
from migm.config.checks import check_below
from migm.runtime.errors import UserError, nearest


def names(group: str) -> list[str]:
    """All files of a group such as `data/storage`, without their suffix."""
    hydra = GlobalHydra.instance()
    if hydra.is_initialized():
        return hydra.config_loader().get_group_options(group, ObjectType.CONFIG)
    return sorted(path.stem for path in (Path(conf_path()) / group).glob("*.yaml"))


def file(group: str, name: str, key: str) -> DictConfig:
    """The node that a file of a group makes, not resolved; UserError that begins with `key` where there is none."""
    try:
        if GlobalHydra.instance().is_initialized():
            cfg = compose(f"{group}/{name}")
        else:
            with initialize_config_dir(conf_path(), version_base="1.3"):
                cfg = compose(f"{group}/{name}")
    except MissingConfigException:
        raise UserError(f"{key}: {group} {name} is unknown{nearest(name, names(group))}") from None
    return OmegaConf.select(cfg, group.replace("/", "."))


def experiment_of(base: str) -> str | None:
    """Return the experiment that trains a shortcut for a base: it chooses the data and evaluation set that fit it."""
    files = (Path(conf_path()) / "experiment").glob("*.yaml")
    about = [path.stem for path in files if f"override /base: {base}\n" in path.read_text(encoding="utf-8")]
    return min(about, key=lambda name: (not name.endswith("_shortcut"), name), default=None)  # before studies


def alternatives(group: str) -> dict[str, Any]:
    """Every file of a group, built with its own values, by name; none of them may refer to keys elsewhere."""
    built = {}
    for name in names(group):
        node: Any = OmegaConf.to_container(file(group, name, group), resolve=True)
        check_below(group, node)
        built[name] = build(node)
    return built
