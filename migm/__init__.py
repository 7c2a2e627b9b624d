"""migm: masked image generation models, several times faster, with almost no loss of quality."""

import os
import sys

__version__ = "0.1.0"

SPINS = "1000"  # rounds that a thread of OpenMP waits awake for the next operation, of 300,000 by default


def wait_briefly() -> None:
    """Let threads that have nothing to do sleep soon: beside another job two are slower than one otherwise.

    OpenMP reads it once, when torch is loaded; what the user set for it counts. What it saves and costs:
    experiments/021-threads.
    """
    if "torch" not in sys.modules and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS


if sys.argv[:1] == ["-m"]:  # a command starts: `python -m migm.<command>` reads this before its own imports
    wait_briefly()
