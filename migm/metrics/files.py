"""Find, check and fetch the files of third parties that an evaluation needs."""

from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import torch

from migm.config.building import class_of
from migm.runtime.errors import UserError
from migm.runtime.files import file_hash, replacing

DPG = "the folder dpg_bench/prompts of https://github.com/TencentQQGYLab/ELLA (1,065 files)"
PROMPTS = "your prompts: .txt (one a line), .jsonl, .json, or a folder"


class Need(NamedTuple):
    """A file or folder, and its address or an instruction to get it."""

    path: Path
    source: str


def needs(metrics: dict[str, Any], evalset: dict[str, Any]) -> dict[Need, list[str]]:
    """Map every file that an evaluation reads to the names of its readers."""
    named = [(name, need) for name, node in metrics.items() for need in class_of(node).needs(name, node)]
    if file := evalset["inputs"].get("file"):
        named.append(("evalset", Need(Path(file), DPG if "dpg_bench" in file else PROMPTS)))
    readers: dict[Need, list[str]] = {}
    by_path: dict[Path, Need] = {}
    for name, need in named:
        readers.setdefault(by_path.setdefault(need.path, need), []).append(name)
    return readers


def required(path: str | Path, sha256: str, source: str, offline: bool, key: str) -> Path:
    """Return the file at `path`; its SHA-256 must begin with `sha256` (empty: not checked), else UserError.

    A missing file is fetched if `source` is an address and `offline` is false. Otherwise FileNotFoundError says
    where to get the file and where to put it.
    """
    path = Path(path)
    if not path.is_file():
        _fetch(path, sha256, source, offline, key)
    if sha256 and not file_hash(path).startswith(sha256):
        raise UserError(f"{key}={path} has SHA-256 {file_hash(path)[:16]}…, not {sha256}…: another file, or damaged")
    return path


def _fetch(path: Path, sha256: str, source: str, offline: bool, key: str) -> None:
    advice = f"{key}={path}: no such file; get it from {source} and put it there"
    if offline or not source.startswith("https://"):
        raise FileNotFoundError(advice + (" (paths.offline=true: nothing is fetched)" if offline else ""))
    try:
        with replacing(path) as temporary:
            torch.hub.download_url_to_file(source, str(temporary), sha256 or None)
    except (URLError, OSError, RuntimeError) as error:
        raise FileNotFoundError(f"{advice} (fetching it failed: {error})") from error
