"""Run the analyses that a config names, and write a figure and numbers for each."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from migm.analyses.recording import Setting
from migm.config.building import build, class_of
from migm.config.points import Chosen
from migm.config.roots import AnalyseConfig
from migm.runtime.console import Plain
from migm.runtime.errors import UserError
from migm.runtime.files import write_atomic
from migm.runtime.owned import only, own
from migm.runtime.progress import progress
from migm.runtime.provenance import environment
from migm.sampling.sampler import Sampler, say_weights


@torch.inference_mode()
def run(config: AnalyseConfig, compared: Sequence[Chosen]) -> None:
    """Write a figure and its numbers for every analysis; some look at the points `compared`."""
    names, folder, console = chosen(config), Path(config.folder), Plain()
    name_pattern = "|".join(map(re.escape, config.analyses))
    own(folder, "analyses", "folder", only(folder, rf"({name_pattern})\.(png|jsonl?|md)"))
    base = build(config.base)
    vanilla = Sampler(base, build(config.sampling), runtime=build(config.runtime))
    samplers = [Sampler(base, *parts) for parts in compared]
    say_weights(samplers, console)
    about = {"base": base.fingerprint(), "num_steps": vanilla.num_steps, **environment(base.device)}
    with progress(console, "analyses") as bar:
        setting = Setting(vanilla, build(config.evalset["inputs"]), samplers, config.seed, bar)
        task = bar.add_task("", total=len(names))
        for name in names:
            bar.update(task, description=name)
            figure = folder / f"{name}.png"
            numbers = build(config.analyses[name]).run(setting, figure)
            write_atomic(folder / f"{name}.json", json.dumps({**numbers, "about": about}, indent=1) + "\n")
            others = sorted(path.name for path in folder.glob(f"{name}.*") if path != figure)
            console.print(f"{name}: {figure} and {', '.join(others)}")
            bar.advance(task)


def chosen(config: AnalyseConfig) -> list[str]:
    """Return the names of the analyses that the config chooses; UserError for unknown names."""
    available = list(config.analyses)
    names = [config.analysis] if isinstance(config.analysis, str) else list(config.analysis or [])
    if names == ["all"]:
        return available
    unknown = [name for name in names if name not in available]
    if unknown or not names:
        raise UserError(f"analysis={config.analysis}: name one or a list of {', '.join(available)}, or all")
    return names


def compares_points(config: AnalyseConfig) -> bool:
    """Whether one of the analyses that the config names looks at points; the others look at vanilla runs."""
    return any(getattr(class_of(config.analyses[name]), "needs_points", False) for name in chosen(config))
