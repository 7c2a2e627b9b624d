"""Say which command trains what a running command lacks."""

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


def training_command(name: str) -> str:
    """Return the command that trains a shortcut under `name`, the running command's; in Python, the function for it.

    A command that chose a base alone gets the experiment of that base, with the data and network that fit it.
    """
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    if not any(source.path == conf_path() for source in sources):
        return "migm.train_shortcut"
    folders = [("--config-dir", source.path) for source in sources if source.provider == "command-line"]
    given = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
    kept = {o.key_or_group: str(o.input_line) for o in given if re.split(r"[./@]", o.key_or_group)[0] in OF_TRAINING}
    experiment = experiment_of(HydraConfig.get().runtime.choices["base"])
    if "experiment" not in kept and experiment:
        kept.pop("base", None)
        kept = {"experiment": f"+experiment={experiment}", "name": f"name={name}", **kept}
    return shlex.join(["python", "-m", "migm.train", *(part for folder in folders for part in folder), *kept.values()])
