"""`python -m migm.analyse`: the paper's analysis figures, on any base."""

import json
import re
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

from migm.analyses.recording import Setting
from migm.config import AnalyseConfig, build, conf_path, load
from migm.console import Plain
from migm.evaluate import points
from migm.owned import only, own
from migm.progress import progress
from migm.runtime import UserError, command, environment, write_atomic
from migm.writing import writing

NEED_POINTS = {"feature_error", "images"}  # the others look at vanilla runs


@hydra.main(config_path=conf_path(), config_name="analyse", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Load the config and run the analyses that it names."""
    config = load(cfg, AnalyseConfig)
    with writing(config.folder, f"folder={config.folder}", folder=True):
        run(config, cfg)


@torch.inference_mode()
def run(config: AnalyseConfig, cfg: DictConfig) -> None:
    """Write a figure and its numbers for every analysis."""
    names, folder, console = chosen(config), Path(config.folder), Plain()
    known = "|".join(map(re.escape, config.analyses))
    own(folder, "analyses", "folder", only(folder, rf"({known})\.(png|json)"))
    compared = points(cfg, config) if NEED_POINTS & set(names) else []
    base = build(config.base)
    setting = Setting(base, build(config.sampling), build(config.evalset["inputs"]), compared, config.seed)
    about = {"base": base.fingerprint(), "num_steps": setting.sampling.num_steps, **environment(base.device)}
    with progress(console, "analyses") as bar:
        task = bar.add_task("", total=len(names))
        for name in names:
            bar.update(task, description=name)
            figure = folder / f"{name}.png"
            numbers = build(config.analyses[name]).run(setting, figure)
            write_atomic(folder / f"{name}.json", json.dumps({**numbers, "about": about}, indent=1) + "\n")
            console.print(f"{name}: {figure} and {figure.with_suffix('.json').name}")
            bar.advance(task)


def chosen(config: AnalyseConfig) -> list[str]:
    """The analyses that the config names."""
    known = list(config.analyses)
    names = [config.analysis] if isinstance(config.analysis, str) else list(config.analysis or [])
    if names == ["all"]:
        return known
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise UserError(f"analysis={config.analysis}: name one or a list of {', '.join(known)}, or all")
    return names


if __name__ == "__main__":
    main()
