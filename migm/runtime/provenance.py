"""What a record says of the program and machine that made it: device, versions, commit."""

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
    """Name of the device and versions, for result records."""
    from migm import __version__

    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else f"{_cpu_name()} x {torch.get_num_threads()} threads"
    return {"device": name, "torch": torch.__version__, "migm": __version__, "commit": _commit()}


def _commit() -> str:
    """The commit that this package's files are of, by their repository or by pip's record; else `unknown`.

    A repository that only surrounds an installed package says nothing about it.
    """
    return _described(Path(__file__)) or _installed_commit() or "unknown"


def _described(file: Path) -> str:
    """The commit of the repository that holds `file`, with `-dirty` if it was changed; empty without one or git."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # a hook's repository
    for task in (["ls-files", "--error-unmatch", file.name], ["describe", "--always", "--dirty", "--exclude=*"]):
        try:
            done = subprocess.run(
                ["git", *task], cwd=file.parent, env=clean, capture_output=True, text=True, check=False
            )
        except OSError:  # no git, or one that may not be run
            return ""
        if done.returncode:
            return ""
    return done.stdout.strip()


def _installed_commit() -> str:
    """What `pip install git+...` keeps (PEP 610)."""
    try:
        record = json.loads(distribution("migm").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return ""
    return record.get("vcs_info", {}).get("commit_id", "")[:7]
