"""Compose the commands' configs in Python, with the same names and checks, and without changing global state."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf

from migm.config.building import build, checked, conf_path
from migm.config.roots import Common, EvaluateConfig, TrainConfig
from migm.runtime.errors import UserError, nearest

Root = TypeVar("Root", bound=Common)
COMMANDS: dict[type[Common], str] = {EvaluateConfig: "evaluate", TrainConfig: "train"}


def config_of(
    root: type[Root], base: str, changes: Mapping[str, Any] | None = None, **groups: str | list[str] | None
) -> Root:
    """Return the config of a command for a base of conf/base, with its experiment, `groups` and `changes`.

    `changes` maps keys of the config, such as `sampling.guidance.guidance_scale`, to values. Raises UserError with the
    line that the command would print.
    """
    refuse_unknown("base", base)
    overrides = [f"+experiment={experiment}"] if (experiment := _experiment(base)) else [f"base={base}"]
    for group, choice in groups.items():
        if choice is None:
            continue
        for name in [choice] if isinstance(choice, str) else choice:
            refuse_unknown(group, name)
        overrides.append(f"{group}={choice}" if isinstance(choice, str) else f"{group}=[{','.join(choice)}]")
    with _hydra():
        cfg = compose(COMMANDS[root], overrides)
    OmegaConf.set_struct(cfg, False)
    cfg.points = {}
    for key, value in (changes or {}).items():
        OmegaConf.update(cfg, key, value, force_add=True)
    return checked(cfg, root)


def built(node: Any, seed: int = 0) -> Any:
    """Build a component as a command of this seed would, leaving torch's random state unchanged."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(node)


def refuse_unknown(group: str, name: str) -> None:
    """Raise a UserError, with all names, if a group of the config tree does not have this name."""
    names = [path.stem for path in (Path(conf_path()) / group).glob("*.yaml")]
    if name not in names:
        raise UserError(f"{group}={name} is unknown{nearest(name, names)}")


def _experiment(base: str) -> str | None:
    """Return the experiment that trains a shortcut for a base: it chooses the data and evaluation set that fit it."""
    files = (Path(conf_path()) / "experiment").glob("*.yaml")
    about = [path.stem for path in files if f"override /base: {base}\n" in path.read_text(encoding="utf-8")]
    return min(about, key=lambda name: (not name.endswith("_shortcut"), name), default=None)  # before studies


@contextmanager
def _hydra() -> Iterator[None]:
    """Open Hydra on our config tree for the block, also inside another program that uses Hydra."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(conf_path(), version_base="1.3"):
            yield
    except HydraException as error:
        raise UserError(str(error).splitlines()[0]) from error
    finally:
        GlobalHydra.instance().hydra = before
