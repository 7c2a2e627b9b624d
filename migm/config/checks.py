"""Check a config before anything is built, and refuse wrong values by key."""

import inspect
from collections.abc import Callable, Iterator, Set
from typing import Any, get_type_hints

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object

from migm.config.earlier import RENAMED_KEYS
from migm.config.fitting import GROUP, Component, fitted
from migm.runtime.device import Precision
from migm.runtime.errors import UserError, nearest
from migm.runtime.kinds import Count, Filled
from migm.runtime.launch import in_sweep, launched

COMPONENTS = (
    "base",
    "sampling",
    "shortcut",
    "accelerator",
    "objective",
    "optimizer",
    "lr_schedule",
    "data",
    "evalset",
    "trainer",
    "runtime",
)
# Keys that commands read themselves, in any component.
LOOKED_INTO: dict[str, Any] = {
    "paths.output_dir": Filled,
    "evalset.inputs": Component,
    "data.inputs": Component,
    "trainer.max_steps": Count,
    "trainer.devices": int | str | list[int],
    "trainer.num_nodes": Count,
    "trainer.precision": Precision,
}
HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


def refuse_emptied_groups(plain: dict[str, Any]) -> None:
    """Refuse a config in which an override emptied a group, or removed a component or key, that commands read."""
    for key in (*COMPONENTS, "metric", "callbacks", "logger", "paths"):
        if not isinstance(plain[key], dict) or (key in COMPONENTS and "_target_" not in plain[key]):
            raise UserError(f"{key}={plain[key]} is no group of keys; choose one of its files by {key}=<name>")
    for group in ("metric", "callbacks", "logger"):
        for key, node in plain[group].items():
            if not isinstance(node, dict) or "_target_" not in node:
                raise UserError(f"{group}.{key}={node} must be {GROUP}; leave it out by ~{group}.{key}")
    for path, kind in LOOKED_INTO.items():
        group, key = path.split(".")
        if key not in plain[group]:
            raise UserError(f"config key {path} is missing")
        plain[group][key] = fitted(path, plain[group][key], kind)


def targets(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every component below a node, with its key."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from targets(value, f"{path}[{i}]")


def borrowed(raw: Any, path: str = "") -> Iterator[str]:
    """Yield the keys of an unresolved config whose values refer to other keys; a list counts as a whole."""
    if isinstance(raw, dict):
        for key, value in raw.items():
            yield from borrowed(value, f"{path}.{key}" if path else str(key))
    elif "${" in str(raw):
        yield path


def check(plain: dict[str, Any], root: Callable[..., Any], raw: Any, unbuilt: Set[str] = frozenset()) -> None:
    """Refuse values that the annotations of a root and of its components forbid, at the key where they were written.

    `raw` is the config before it was resolved: values that `${...}` takes from other keys are checked last. Components
    at or below the keys `unbuilt` are passed over.
    """
    for later in (set(borrowed(raw)), set()):
        check_arguments("", root, plain, later=later)
        refuse_emptied_groups(plain)
        for path, node in targets(plain, ""):
            if not any(f"{path}.".startswith(f"{one}.") for one in later | unbuilt):
                check_target(path, node, later)


def check_target(path: str, node: dict[str, Any], later: Set[str] = frozenset()) -> None:
    """Refuse a component at `path` that cannot be imported, and keys or values that its constructor does not take."""
    try:
        target = get_object(node["_target_"])
    except Exception as error:
        raise UserError(f"{path}._target_={node['_target_']} cannot be imported ({error})") from error
    if not isinstance(node.get("_partial_", False), bool):
        raise UserError(f"{path}._partial_={node['_partial_']} must be true or false")
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(target).parameters.values()):
        return
    whole = not node.get("_partial_") and "_args_" not in node
    ours = getattr(target, "__module__", "").startswith("migm.")
    check_arguments(f"{path}.", target, node, whole, ours, later)


def check_below(path: str, node: Any) -> None:
    """Refuse every component at or below `path` as `check_target` does."""
    for place, component in targets(node, path):
        check_target(place, component)


def check_arguments(
    prefix: str,
    target: Callable[..., Any],
    arguments: dict[str, Any],
    whole: bool = True,
    ours: bool = True,
    later: Set[str] = frozenset(),
) -> None:
    """Refuse keys that `target` does not take, required keys that are missing, and values of another type.

    Missing keys are refused only if the arguments are the `whole`. Annotations are checked only if the target is
    `ours`, and not at the keys `later`. Numbers where a text belongs become text in `arguments`.
    """
    parameters, keys = inspect.signature(target).parameters, set(arguments) - HYDRA_KEYS
    for key in sorted(keys - set(parameters)):
        renamed = RENAMED_KEYS.get(f"{prefix}{key}")
        raise UserError(f"config key {prefix}{key} is unknown{f'; {renamed}' if renamed else nearest(key, parameters)}")
    required = {k for k, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_POSITIONAL}
    if whole and required - keys:
        raise UserError(f"config key {prefix}{min(required - keys)} is missing")
    if not ours:
        return
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    for key, parameter in parameters.items():
        if key not in keys or key not in hints or f"{prefix}{key}" in later:
            continue
        if arguments[key] is not None or parameter.default is not None:
            arguments[key] = fitted(f"{prefix}{key}", arguments[key], hints[key])


def sweeps_grid(hydra: Any) -> bool:
    """Whether the sweeper of Hydra's own config is its own, whose trials are a grid that can be told beforehand."""
    return hydra.sweeper._target_ == "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def refuse_split_sweep(trainer: dict[str, Any], training: bool) -> None:
    """Refuse a sweep over trainings with several processes that no launcher started, as their parameters could differ.

    Lightning would start the whole sweep again in every rank. Under torchrun every rank runs its own sweep, and these
    agree only if the sweeper's choices are a grid.
    """
    if not in_sweep():
        return
    hydra, processes = HydraConfig.get(), launched()[1]
    devices, nodes = trainer["devices"], trainer["num_nodes"]
    # "auto" and -1 may mean several devices
    single = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
    if training and (nodes > 1 or not single) and processes == 1:
        raise UserError(
            f"trainer.devices={devices} with --multirun: ranks would train on different parameters; start each "
            "trial by torchrun or submitit, or sweep with trainer.devices=1"
        )
    submitted = "submitit" in hydra.launcher._target_
    if processes > 1 and not submitted and not sweeps_grid(hydra):
        raise UserError(
            f"{processes} processes that each run the sweeper {hydra.sweeper._target_.rpartition('.')[2]}: they "
            "would choose different parameters; start one, with +launcher=submitit_slurm for the trials"
        )
