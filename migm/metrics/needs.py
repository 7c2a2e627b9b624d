"""List the files that an evaluation reads, and where to get missing ones."""

from pathlib import Path
from typing import Any

from migm.config.building import class_of
from migm.metrics.files import Need

DPG = "the folder dpg_bench/prompts of https://github.com/TencentQQGYLab/ELLA (1,065 files)"


def needs(metrics: dict[str, Any], evalset: dict[str, Any]) -> dict[Need, list[str]]:
    """Map every needed file to the names of its readers."""
    readers: dict[Need, list[str]] = {}
    by_path: dict[Path, Need] = {}
    named = [(name, need) for name, node in metrics.items() for need in class_of(node).needs(name, node)]
    for name, need in named + [("evalset", need) for need in _of_evalset(evalset)]:
        readers.setdefault(by_path.setdefault(need.path, need), []).append(name)
    return readers


def _of_evalset(evalset: dict[str, Any]) -> list[Need]:
    file = evalset["inputs"].get("file")
    if not file:
        return []
    return [
        Need(Path(file), DPG if "dpg_bench" in file else "your prompts: .txt (one a line), .jsonl, .json, or a folder")
    ]
