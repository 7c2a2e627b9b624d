"""migm: masked image generation models, several times faster, with almost no loss of quality."""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from migm.door.comparing import compare
    from migm.door.loading import load_base, load_shortcut
    from migm.door.sampler import Sampler
    from migm.door.training import train_shortcut

__all__ = ["Sampler", "__version__", "compare", "load_base", "load_shortcut", "train_shortcut"]
__version__ = "0.1.0"
DOOR = {  # imported when first used: importing torch takes seconds
    "Sampler": "sampler",
    "compare": "comparing",
    "load_base": "loading",
    "load_shortcut": "loading",
    "train_shortcut": "training",
}

SPINS = "1000"  # rounds that an OpenMP thread waits actively for the next operation; the default is 300,000


def wait_briefly() -> None:
    """Let idle threads sleep soon, since beside another job two threads can be slower than one.

    OpenMP reads the setting once, when torch is imported; a value that the user set is kept. Savings and costs are in
    experiments/021-threads.
    """
    if "torch" not in sys.modules and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def __getattr__(name: str) -> Any:
    if name not in DOOR:
        raise AttributeError(f"module 'migm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"migm.door.{DOOR[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *DOOR})


if sys.argv[:1] == ["-m"]:  # a command starts: `python -m migm.<command>` runs this before the command's imports
    wait_briefly()
