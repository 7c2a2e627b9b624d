"""`python -m migm.install_scorers [folder]`: the environment of scorers that need packages that ours exclude."""

import argparse
from pathlib import Path

from migm.metrics.scorers.install import default_folder, install
from migm.runtime.errors import command


@command
def main() -> None:
    """Install into the folder of the command line, or the default folder of the configuration."""
    parser = argparse.ArgumentParser(
        prog="python -m migm.install_scorers",
        description="Install the published scorers into an environment of their own: 5.5 GB, a few minutes.",
    )
    parser.add_argument("folder", nargs="?", type=Path, default=default_folder(), help="new or empty; %(default)s")
    print(f"scorers: {install(parser.parse_args().folder)}")


if __name__ == "__main__":
    main()
