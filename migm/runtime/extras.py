"""Packages that only some commands need: what to install where one is missing."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from migm.runtime.errors import UserError

EXTRAS = {  # module -> the extra of this package that brings it
    "cleanfid": "metrics",
    "open_clip": "metrics",
    "torch_fidelity": "metrics",
    "transformers": "metrics",
    "s3fs": "remote",
    "sklearn": "analyse",
    "wandb": "wandb",
    "wandb_workspaces": "wandb",
}


def install(extra: str) -> str:
    """The command that brings an extra: into a checkout from there, else beside the installed wheel."""
    return f'pip install -e ".[{extra}]"' if in_checkout() else f'pip install "migm[{extra}]"'


def in_checkout() -> bool:
    """Whether this code runs from its repository; else it was installed from a wheel."""
    return (Path(__file__).parents[2] / "pyproject.toml").is_file()


def optional(module: str, wanted_by: str = "") -> ModuleType:
    """A module of an extra; where it is missing, a UserError says how to install it, and what needs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(_missing(str(error.name), EXTRAS[module.partition(".")[0]], wanted_by)) from error


def refuse_missing(*modules: str, wanted_by: str) -> None:
    """The same of several modules before they are needed, without the seconds of importing them."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise UserError(_missing(module, EXTRAS[module], wanted_by))


def _missing(module: str, extra: str, wanted_by: str) -> str:
    needed = f"{wanted_by} needs {module}, which is not installed" if wanted_by else f"{module} is not installed"
    return f"{needed}: {install(extra)}"
