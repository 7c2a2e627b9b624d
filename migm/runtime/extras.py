"""Packages that only some commands need, and how to install a missing one."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from migm.runtime.errors import UserError

EXTRAS = {  # module -> the extra of this package that installs it
    "cleanfid": "metrics",
    "open_clip": "metrics",
    "optuna": "sweep",
    "torch_fidelity": "metrics",
    "transformers": "metrics",
    "s3fs": "remote",
    "sklearn": "analyse",
    "wandb": "wandb",
    "wandb_workspaces": "wandb",
}


def install(extra: str) -> str:
    """Return the command that installs an extra, for a checkout or for an installed wheel."""
    return f'pip install -e ".[{extra}]"' if in_checkout() else f'pip install "migm[{extra}]"'


def in_checkout() -> bool:
    """Return whether this code runs from its repository instead of an installed wheel."""
    return (Path(__file__).parents[2] / "pyproject.toml").is_file()


def optional(module: str, wanted_by: str = "") -> ModuleType:
    """Import a module of an extra; UserError if it is missing, with how to install it and what needs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(_missing(str(error.name), EXTRAS[module.partition(".")[0]], wanted_by)) from error


def refuse_missing(*modules: str, wanted_by: str) -> None:
    """Raise the UserError of `optional` for the first missing module, without spending seconds on importing them."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise UserError(_missing(module, EXTRAS[module], wanted_by))


def _missing(module: str, extra: str, wanted_by: str) -> str:
    needed = f"{wanted_by} needs {module}, which is not installed" if wanted_by else f"{module} is not installed"
    return f"{needed}: {install(extra)}"
