"""Say which command makes what a running command lacks."""

import re
import shlex

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser

from migm.config.building import conf_path
from migm.config.groups import experiment_of

# Roots of the keys that decide what a training makes, and where it writes it.
OF_TRAINING = {
    "experiment",
    "name",
    "seed",
    "device",
    "base",
    "sampling",
    "shortcut",
    "objective",
    "optimizer",
    "lr_schedule",
    "data",
    "trainer",
    "paths",
}


# Keys that decide where full steps are placed; the predictor is part of the accelerator.
OF_PLACING = {"experiment", "name", "device", "base", "sampling", "data", "evalset", "paths"}
OF_CALIBRATING = OF_PLACING - {"data"}


def training_command(name: str) -> str:
    """Return the command that trains a shortcut under `name`, the running command's; in Python, the function for it.

    A command that chose a base alone gets the experiment of that base, with the data and network that fit it.
    """
    return _again("migm.train", OF_TRAINING, name) or "migm.train_shortcut"


def placing_command(name: str, accelerator: str, num_steps: int) -> str:
    """Return the command that places an accelerator's full steps at N under `name`; in Python, of these keys alone."""
    own = {"accelerator": f"accelerator={accelerator}", "sampling.num_steps": f"sampling.num_steps={num_steps}"}
    command = _again("migm.place", OF_PLACING, name, own)
    return command or shlex.join(["python", "-m", "migm.place", *own.values()])


def calibrating_command(name: str, num_steps: int | None) -> str:
    """Return the command that calibrates under `name`, at N if it is given; in Python, of N alone."""
    own = {} if num_steps is None else {"sampling.num_steps": f"sampling.num_steps={num_steps}"}
    command = _again("migm.calibrate", OF_CALIBRATING, name, own)
    return command or shlex.join(["python", "-m", "migm.calibrate", *own.values()])


def _again(module: str, roots: set[str], name: str, own: dict[str, str] | None = None) -> str | None:
    """Return a command with the overrides of the running one below `roots`, and its `own`; None outside commands."""
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    if not any(source.path == conf_path() for source in sources):
        return None
    folders = [("--config-dir", source.path) for source in sources if source.provider == "command-line"]
    given = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
    kept = {o.key_or_group: str(o.input_line) for o in given if re.split(r"[./@]", o.key_or_group)[0] in roots}
    experiment = experiment_of(HydraConfig.get().runtime.choices["base"])
    if "experiment" not in kept and experiment:
        kept.pop("base", None)
        kept = {"experiment": f"+experiment={experiment}", "name": f"name={name}", **kept}
    words = {**kept, **(own or {})}
    return shlex.join(["python", "-m", module, *(part for folder in folders for part in folder), *words.values()])
