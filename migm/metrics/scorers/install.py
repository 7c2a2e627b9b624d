"""Install the environment of scorers that cannot be installed beside ours.

The environment holds the packages `image-reward` and `unipercept-reward` as published (5.5 GB, a few
minutes), with the torch version of this environment. A second call does nothing.
"""

import os
import shutil
import subprocess
import venv
from importlib.metadata import version
from pathlib import Path

from migm.runtime.errors import UserError
from migm.runtime.files import file_hash, write_atomic
from migm.runtime.owned import own, refuse_foreign

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
UNIPERCEPT = "unipercept-reward==1.0.3"  # it pins another torch, so it is installed without dependencies

# Content of the environment's folder; nothing else is removed to make the environment anew.
PARTS = ("complete", "pyvenv.cfg", "bin", "include", "lib", "lib64", "share")


def default_folder() -> Path:
    """Return the scorers' folder below the default of `paths.evaluation`."""
    return Path(os.environ.get("MIGM_EVALUATION", "data/evaluation")) / "scorers"


def python_of(folder: str | Path) -> Path:
    """Return the interpreter of a complete environment; UserError names the command that makes one."""
    folder = Path(folder)
    if _made(folder) != _stamp():
        refuse_foreign(folder, "scorers", "metric.*.scorers", known=bool(_made(folder)))
        raise UserError(
            f"metric.*.scorers={folder} is no complete environment of this version; "
            f"run `python -m migm.install_scorers {folder}` (5.5 GB)"
        )
    return folder / "bin" / "python"


def install(folder: Path) -> Path:
    """Make the environment unless it exists -> its interpreter; a folder of other content is refused."""
    if _made(folder) == _stamp():
        return python_of(folder)
    own(folder, "scorers", "folder", known=bool(_made(folder)))
    for path in map(folder.joinpath, PARTS):  # left by another version or by a kill
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install"]  # shows what it fetches, and how much is left
    pinned = [f"{name}=={version(name)}" for name in ("torch", "torchvision", "numpy")]
    for line in ([*pinned, "-r", str(REQUIREMENTS)], ["--no-deps", UNIPERCEPT]):
        done = subprocess.run([*pip, *line], check=False)
        if done.returncode:
            raise UserError(f"pip could not install {' '.join(line)} into {folder}; its words are above")
    write_atomic(folder / "complete", _stamp())
    return python_of(folder)


def _made(folder: Path) -> str:
    """Return the stamp of the version that completed the environment, or an empty text."""
    stamp = folder / "complete"
    return stamp.read_text(errors="replace") if stamp.is_file() and (folder / "pyvenv.cfg").is_file() else ""


def _stamp() -> str:
    return f"{file_hash(REQUIREMENTS)} {UNIPERCEPT} torch {version('torch')}"
