"""Load bases and shortcuts by name or file."""

from pathlib import Path
from typing import Any

from migm.accelerators.predictors.shortcut import Shortcut
from migm.bases.base import Base
from migm.config.roots import GenerateConfig
from migm.door.configs import NAME, built, config_of


def load_base(name: str = "cifar10", **overrides: Any) -> Base:
    """Load a frozen base by its name in conf/base; `overrides` are keys of its YAML, such as device="cpu".

    Nested keys are joined by two underscores: transformer__depth=2. The commands use the same base, with the same
    weights and fingerprint. Raises UserError (a ValueError) for unknown names and keys, listing the known names, and
    FileNotFoundError for missing weights.
    """
    changes = {f"base.{key.replace('__', '.')}": value for key, value in overrides.items()}
    config = config_of(GenerateConfig, name, changes)
    base = built(config.base, config.seed)
    setattr(base, NAME, name)
    return base


def load_shortcut(path: str | Path, base: Base, **options: Any) -> Shortcut:
    """Load a trained shortcut for a base: a file of `migm.train_shortcut` or `migm.train`, or a published checkpoint.

    `options` are the parameters of `migm.accelerators.predictors.shortcut.Shortcut`. Raises UserError for a file of
    another kind or trained for another base.
    """
    shortcut = Shortcut(path, **options)
    shortcut.fingerprint(base)  # reads and checks the file
    return shortcut
