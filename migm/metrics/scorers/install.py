"""The environment of scorers that cannot be installed beside ours.

It holds the packages `image-reward` and `unipercept-reward` as published (5.5 GB, a few minutes); torch
is of the version that runs this. Done again, it does nothing.
"""

import os
import shutil
import subprocess
import venv
from importlib.metadata import version
from pathlib import Path

from migm.runtime.errors import UserError
from migm.runtime.files import file_hash
from migm.runtime.owned import own, refuse_foreign

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
UNIPERCEPT = "unipercept-reward==1.0.3"  # pins a torch of its own, so that it is installed without dependencies

# What the folder of such an environment holds; nothing else is removed to make it anew.
PARTS = ("complete", "pyvenv.cfg", "bin", "include", "lib", "lib64", "share")


def default_folder() -> Path:
    """Where `paths.evaluation` has it."""
    return Path(os.environ.get("MIGM_EVALUATION", "data/evaluation")) / "scorers"


def python_of(folder: str | Path) -> Path:
    """The interpreter of a complete environment; another is refused with the command that makes it."""
    folder = Path(folder)
    if _made(folder) != _stamp():
        refuse_foreign(folder, "scorers", "metric.*.scorers", known=bool(_made(folder)))
        raise UserError(
            f"metric.*.scorers={folder} is no complete environment of this version; "
            f"run `python -m migm.install_scorers {folder}` (5.5 GB)"
        )
    return folder / "bin" / "python"


def install(folder: Path) -> Path:
    """Make the environment, unless it is there -> its interpreter; a folder that holds something else is refused."""
    if _made(folder) == _stamp():
        return python_of(folder)
    own(folder, "scorers", "folder", known=bool(_made(folder)))
    for path in map(folder.joinpath, PARTS):  # of another version, or left by a kill
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install"]  # shows what it fetches, and how much is left
    same = [f"{name}=={version(name)}" for name in ("torch", "torchvision", "numpy")]
    for line in ([*same, "-r", str(REQUIREMENTS)], ["--no-deps", UNIPERCEPT]):
        done = subprocess.run([*pip, *line], check=False)
        if done.returncode:
            raise UserError(f"pip could not install {' '.join(line)} into {folder}; its words are above")
    (folder / "complete").write_text(_stamp())
    return python_of(folder)


def _made(folder: Path) -> str:
    """The stamp of the version that made the environment whole; empty where there is none."""
    stamp = folder / "complete"
    return stamp.read_text(errors="replace") if stamp.is_file() and (folder / "pyvenv.cfg").is_file() else ""


def _stamp() -> str:
    return f"{file_hash(REQUIREMENTS)} {UNIPERCEPT} torch {version('torch')}"
