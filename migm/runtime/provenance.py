"""Describe the program and machine that made a record: device, versions, commit."""

import functools
import json
import os
import subprocess
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch

from migm.runtime.device import _cpu_name


@functools.cache
def environment(device: torch.device) -> dict[str, str]:
    """Return the device's name and the versions, for result records."""
    from migm import __version__

    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else f"{_cpu_name()} x {torch.get_num_threads()} threads"
    return {"device": name, "torch": torch.__version__, "migm": __version__, "commit": _commit()}


def _commit() -> str:
    """Return the commit of this package's files, from their repository or from pip's record; `unknown` without either.

    A repository that merely contains an installed package does not count.
    """
    return _described(Path(__file__)) or _installed_commit() or "unknown"


def _described(file: Path) -> str:
    """Return the commit of the repository that holds `file`, with `-dirty` if changed; empty if there is none."""
    # A Git hook may have set variables of another repository.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    for task in (["ls-files", "--error-unmatch", file.name], ["describe", "--always", "--dirty", "--exclude=*"]):
        try:
            done = subprocess.run(
                ["git", *task], cwd=file.parent, env=clean, capture_output=True, text=True, check=False
            )
        except OSError:  # git is missing or may not be run
            return ""
        if done.returncode:
            return ""
    return done.stdout.strip()


def _installed_commit() -> str:
    """Return the commit that `pip install git+...` recorded (PEP 610)."""
    try:
        record = json.loads(distribution("migm").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return ""
    return record.get("vcs_info", {}).get("commit_id", "")[:7]
