"""Compose the commands' configs in Python, with the same names and checks, and without changing global state."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf

from migm.bases.base import Base
from migm.config.building import build, checked, conf_path
from migm.config.groups import experiment_of, names
from migm.config.roots import Common, EvaluateConfig, GenerateConfig, TrainConfig
from migm.runtime.errors import UserError, nearest

Root = TypeVar("Root", bound=Common)
NAME = "config_name"  # attribute of bases from conf/base
OWN = "cifar10"  # whose data and evaluation set a base of one's own gets, to be changed by overrides
COMMANDS: dict[type[Common], str] = {
    EvaluateConfig: "evaluate",
    GenerateConfig: "generate",
    TrainConfig: "train",
}


def config_of(
    root: type[Root], base: str | Base, changes: Mapping[str, Any] | None = None, **groups: str | list[str] | None
) -> Root:
    """Return the config of a command for a base, with what its experiment chooses, `groups` and `changes`.

    The base is a name of conf/base or an object. For an object of one's own the sampling is conf/sampling/plain.
    `changes` maps keys of the config, such as `sampling.guidance.guidance_scale`, to values. Raises UserError with the
    line that the command would print.
    """
    name = base if isinstance(base, str) else getattr(base, NAME, None)
    if name is None:
        name, groups = OWN, {**groups, "sampling": groups.get("sampling") or "plain"}
    chosen = {group: choice for group, choice in {"base": name, **groups}.items() if choice is not None}
    with hydra_on_our_tree():
        for group, choice in chosen.items():
            for option in [choice] if isinstance(choice, str) else choice:
                if option not in (options := names(group)):
                    raise UserError(f"{group}={option} is unknown{nearest(option, options)}")
        if experiment := experiment_of(name):  # it chooses the base too
            del chosen["base"]
        texts = {group: c if isinstance(c, str) else f"[{','.join(c)}]" for group, c in chosen.items()}
        overrides = [f"{group}={text}" for group, text in texts.items()]
        cfg = compose(COMMANDS[root], [*([f"+experiment={experiment}"] if experiment else []), *overrides])
    OmegaConf.set_struct(cfg, False)
    cfg.points = {}
    for key, value in (changes or {}).items():
        OmegaConf.update(cfg, key, value, force_add=True)
    return checked(cfg, root)


@contextmanager
def random_state() -> Iterator[None]:
    """Leave torch's random state, also that of every GPU, as it was before the block."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


def built(node: Any, seed: int = 0) -> Any:
    """Build a component as a command of this seed would, leaving torch's random state unchanged."""
    with random_state():
        torch.manual_seed(seed)
        return build(node)


@contextmanager
def hydra_on_our_tree() -> Iterator[None]:
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
