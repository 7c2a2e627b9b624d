"""`python -m migm.scorers.install [folder]`: the environment of scorers that cannot be installed beside ours.

It holds the packages `image-reward` and `unipercept-reward` as published (5.5 GB, a few minutes); torch
is of the version that runs this. Done again, it does nothing.
"""

import os
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

from migm.runtime import UserError, command, file_hash

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
UNIPERCEPT = "unipercept-reward==1.0.3"  # pins a torch of its own, so that it is installed without dependencies


def default_folder() -> Path:
    """Where `paths.evaluation` has it."""
    return Path(os.environ.get("MIGM_EVALUATION", "data/evaluation")) / "scorers"


def python_of(folder: str | Path) -> Path:
    """The interpreter of a complete environment; another is refused with the command that makes it."""
    folder = Path(folder)
    if not (folder / "complete").is_file() or (folder / "complete").read_text() != _stamp():
        raise UserError(
            f"metric.*.scorers={folder} is no complete environment of this version; "
            f"run `python -m migm.scorers.install {folder}` (5.5 GB)"
        )
    return folder / "bin" / "python"


def install(folder: Path) -> Path:
    """Make the environment, unless it is there -> its interpreter."""
    try:
        return python_of(folder)
    except UserError:
        pass
    venv.create(folder, clear=True, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install"]  # shows what it fetches, and how much is left
    same = [f"{name}=={version(name)}" for name in ("torch", "torchvision", "numpy")]
    for line in ([*same, "-r", str(REQUIREMENTS)], ["--no-deps", UNIPERCEPT]):
        done = subprocess.run([*pip, *line], check=False)
        if done.returncode:
            raise UserError(f"pip could not install {' '.join(line)} into {folder}; its words are above")
    (folder / "complete").write_text(_stamp())
    return python_of(folder)


def _stamp() -> str:
    return f"{file_hash(REQUIREMENTS)} {UNIPERCEPT} torch {version('torch')}"


@command
def main() -> None:
    """Install into the folder given, or where the configuration looks."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default_folder()
    print(f"scorers: {install(folder)}")


if __name__ == "__main__":
    main()
