"""Run the analyses that a config names, each into a figure and its numbers."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from migm.analyses.recording import Setting
from migm.config.building import build
from migm.config.roots import AnalyseConfig
from migm.evaluation.cost import Point
from migm.runtime.console import Plain
from migm.runtime.errors import UserError
from migm.runtime.files import write_atomic
from migm.runtime.owned import only, own
from migm.runtime.progress import progress
from migm.runtime.provenance import environment

NEED_POINTS = {"feature_error", "images"}  # the others look at vanilla runs


@torch.inference_mode()
def run(config: AnalyseConfig, compared: Sequence[Point]) -> None:
    """Write a figure and its numbers for every analysis; some look at the points `compared`."""
    names, folder, console = chosen(config), Path(config.folder), Plain()
    known = "|".join(map(re.escape, config.analyses))
    own(folder, "analyses", "folder", only(folder, rf"({known})\.(png|json)"))
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
