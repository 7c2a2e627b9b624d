"""`python -m migm.needs metric=[...] evalset=...`: the files of an evaluation, and where to get what is missing."""

from pathlib import Path
from typing import Any

import hydra
from hydra.utils import get_object
from omegaconf import DictConfig

from migm.config import EvaluateConfig, conf_path, load
from migm.console import Plain
from migm.evaluation.files import Need
from migm.runtime import command

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


@hydra.main(config_path=conf_path(), config_name="evaluate", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Print a line per file, and below a missing one where to get it."""
    config, console = load(cfg, EvaluateConfig), Plain(highlight=False)
    for need, users in needs(config.metric, config.evalset).items():
        there = need.path.exists()
        console.print(f"{'present' if there else 'missing'}  {need.path}  ({', '.join(users)})")
        if not there:
            console.print(f"         {need.source}")


if __name__ == "__main__":
    main()
