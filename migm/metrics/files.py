"""Files of others that an evaluation needs: found, checked, fetched if allowed, or named with their source."""

from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

import torch

from migm.runtime.errors import UserError
from migm.runtime.files import file_hash


class Need(NamedTuple):
    """A file or folder, and its address or what to do to have it."""

    path: Path
    source: str


def required(path: str | Path, sha256: str, source: str, offline: bool, key: str) -> Path:
    """The file at `path`, whose SHA-256 begins with `sha256` (empty: not checked).

    A missing one is fetched from `source` if that is an address and `offline` is false; else FileNotFoundError
    says where to get it and where to put it. Another content is a UserError.
    """
    path = Path(path)
    if not path.is_file():
        _fetch(path, sha256, source, offline, key)
    if sha256 and not file_hash(path).startswith(sha256):
        raise UserError(f"{key}={path} has SHA-256 {file_hash(path)[:16]}…, not {sha256}…: another file, or damaged")
    return path


def _fetch(path: Path, sha256: str, source: str, offline: bool, key: str) -> None:
    wanted = f"{key}={path}: no such file; get it from {source} and put it there"
    if offline or not source.startswith("https://"):
        raise FileNotFoundError(wanted + (" (paths.offline=true: nothing is fetched)" if offline else ""))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(source, str(path), sha256 or None)
    except (URLError, OSError, RuntimeError) as error:
        raise FileNotFoundError(f"{wanted} (fetching it failed: {error})") from error
