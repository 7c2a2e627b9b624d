"""What a config may hold: refusals by key, before anything is built."""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object

from migm.runtime import UserError, in_sweep, launched

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
)
WANTED: dict[type, str] = {str: "a path", dict: "a group of keys with a _target_", int: "a whole number above 0"}
HYDRA_KEYS = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}
PLAIN: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,), bool: (bool,), Path: (str,)}


def refuse_emptied_groups(plain: dict[str, Any]) -> None:
    """What commands look into must be there, whatever an override made of it."""
    for key in (*COMPONENTS, "metric", "callbacks", "logger", "paths"):
        if not isinstance(plain[key], dict) or (key in COMPONENTS and "_target_" not in plain[key]):
            raise UserError(f"{key}={plain[key]} is no group of keys; choose one of its files by {key}=<name>")
    for group in ("metric", "callbacks", "logger"):
        for key, node in plain[group].items():
            if not isinstance(node, dict) or "_target_" not in node:
                raise UserError(f"{group}.{key}={node} must be {WANTED[dict]}; leave it out by ~{group}.{key}")
    for path in ("paths.output_dir", "data.inputs", "evalset.inputs", "trainer.max_steps"):
        group, key = path.split(".")
        wanted = {"output_dir": str, "inputs": dict, "max_steps": int}[key]
        value = plain[group].get(key)
        least = {str: lambda text: text != "", dict: lambda node: "_target_" in node, int: lambda number: number >= 1}
        if not isinstance(value, wanted) or isinstance(value, bool) or not least[wanted](value):
            raise UserError(f"{path}={value} must be {WANTED[wanted]}")


def targets(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every component below a node, with its key."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from targets(value, f"{path}[{i}]")


def check_target(path: str, node: dict[str, Any]) -> None:
    """Refuse a component at `path` that cannot be imported, and keys that its constructor does not take or lacks."""
    try:
        target = get_object(node["_target_"])
    except Exception as error:
        raise UserError(f"{path}._target_={node['_target_']} cannot be imported ({error})") from error
    if not isinstance(node.get("_partial_", False), bool):
        raise UserError(f"{path}._partial_={node['_partial_']} must be true or false")
    parameters = inspect.signature(target).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    given = set(node) - HYDRA_KEYS
    for key in sorted(given - set(parameters)):
        raise UserError(f"config key {path}.{key} is unknown{nearest(key, set(parameters))}")
    required = {k for k, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_POSITIONAL}
    if not node.get("_partial_") and required - given and "_args_" not in node:
        raise UserError(f"config key {path}.{min(required - given)} is missing")
    if getattr(target, "__module__", "").startswith("migm."):
        check_kinds(path, target, {key: node[key] for key in given})


def check_kinds(path: str, target: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Refuse a number where a text belongs and the like, and null where nothing says that it may be.

    Only what is annotated by plain types is looked at closely; what components are given, they check themselves.
    """
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    for key, parameter in inspect.signature(target).parameters.items():
        if key not in given or key not in hints or (parameter.default is None and given[key] is None):
            continue
        options, value = _options(hints[key]), given[key]
        if value is None:
            fits = Any in options or NoneType in options
        else:
            fits = any(_fits(value, option) for option in options)
        if not fits:
            names = " or ".join("null" if o is NoneType else getattr(o, "__name__", str(o)) for o in options)
            raise UserError(f"{path}.{key}={value} must be {names}")


def _options(hint: Any) -> list[Any]:
    return list(get_args(hint)) if get_origin(hint) in (Union, UnionType) else [hint]


def _fits(value: Any, option: Any) -> bool:
    if get_origin(option) is Literal or option not in PLAIN:
        return option is not NoneType
    return isinstance(value, PLAIN[option]) and (option is bool or not isinstance(value, bool))


def nearest(word: str, options: set[str]) -> str:
    """The end of an error about a word that is none of the options: what may be meant, and all of them."""
    close = difflib.get_close_matches(word, options, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{hint} (known: {', '.join(sorted(options))})"


def refuse_split_sweep(plain: dict[str, Any]) -> None:
    """Ranks of one trial must agree on its parameters, so a launcher has to start them for it (DESIGN 5.12).

    Lightning would start the whole sweep again in every rank; under torchrun every rank runs a sweep of its
    own, which agree only where the sweeper's choices are a grid.
    """
    if not in_sweep():
        return
    hydra, processes = HydraConfig.get(), launched()[1]
    devices, nodes = plain["trainer"].get("devices", 1), plain["trainer"].get("num_nodes", 1)
    single = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)  # "auto" and -1 may be several
    if (nodes > 1 or not single) and processes == 1:
        raise UserError(
            f"trainer.devices={devices} with --multirun: ranks would train on different parameters; start each "
            "trial by torchrun or submitit, or sweep with trainer.devices=1"
        )
    submitted = "submitit" in hydra.launcher._target_
    if processes > 1 and not submitted and not hydra.sweeper._target_.endswith(".BasicSweeper"):
        raise UserError(
            f"{processes} processes that each run the sweeper {hydra.sweeper._target_.rpartition('.')[2]}: they "
            "would choose different parameters; start one, with +launcher=submitit_slurm for the trials"
        )
