"""The files that an evaluation reads, and where to get what is missing."""

from pathlib import Path
from typing import Any

from hydra.utils import get_object

from migm.metrics.files import Need

DPG = "the folder dpg_bench/prompts of https://github.com/TencentQQGYLab/ELLA (1,065 files)"


def needs(metrics: dict[str, Any], evalset: dict[str, Any]) -> dict[Need, list[str]]:
    """Every file, and what reads it."""
    found: dict[Need, list[str]] = {}
    known: dict[Path, Need] = {}
    named = [(name, need) for name, node in metrics.items() for need in get_object(node["_target_"]).needs(name, node)]
    for name, need in named + [("evalset", need) for need in _of_evalset(evalset)]:
        found.setdefault(known.setdefault(need.path, need), []).append(name)
    return found


def _of_evalset(evalset: dict[str, Any]) -> list[Need]:
    file = evalset["inputs"].get("file")
    if not file:
        return []
    return [
        Need(Path(file), DPG if "dpg_bench" in file else "your prompts: .txt (one a line), .jsonl, .json, or a folder")
    ]
