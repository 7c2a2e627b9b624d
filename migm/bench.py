"""`python -m migm.bench`: what a full step, a cheap step and the sampling around them cost, side by side."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.reuse import Reuse
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Always, Uniform
from migm.bases.base import Base
from migm.config import BenchConfig, build, conf_path, load
from migm.evaluation.cost import interleaved
from migm.progress import progress
from migm.runtime import command, environment
from migm.sampling.loop import Sampling, generate_images


def measure(
    base: Base, sampling: Sampling, shortcut: torch.nn.Module, batch_size: int, repeats: int, classes: int
) -> list[dict[str, Any]]:
    """Milliseconds per image of one step of each kind.

    `overhead` (head, guidance, draw, selection, bookkeeping) is what one step of the loop costs
    beyond the features: a run that computes them once and reuses them, less that one full step,
    over N. `full` and `cheap` are the features alone, in the middle of a run.
    """
    n, spec = sampling.num_steps, base.spec
    labels, images = torch.arange(batch_size) % classes, torch.arange(batch_size)
    branch = base.encode(labels, guided=sampling.guidance is not None)[0]
    device = base.device
    tokens = torch.randint(0, spec.vocab_size, (batch_size, spec.num_tokens), device=device)
    ratio = torch.full((batch_size,), 0.5, device=device)
    new = torch.arange(spec.num_tokens // n, device=device).expand(batch_size, -1)
    advance = Shortcut(module=shortcut).start(base, branch)
    features = base.features(tokens, branch, ratio)

    def cheap() -> Tensor:
        advance.update(0, features)
        return advance.predict(1, tokens, new, ratio)

    def run(accelerator: Accelerator) -> Callable[[], Tensor]:
        return lambda: generate_images(base, labels, images, 0, sampling=sampling, accelerator=accelerator)

    b = sampling.num_full_steps
    jobs: dict[str, Callable[[], Tensor]] = {
        "full": lambda: base.features(tokens, branch, ratio),
        "cheap": cheap,
        "reused": run(Accelerator(Uniform(1), Reuse())),
        f"vanilla_{n}": run(Accelerator(Always())),
        f"shortcut_{n}_{b}": run(Accelerator(Uniform(b), Shortcut(module=shortcut), name="shortcut")),
        "decode": lambda: base.decode(tokens),
    }
    with progress(Console(), "runs") as bar, torch.inference_mode():
        seconds = interleaved(list(jobs.values()), repeats, device, bar)
    ms = {name: 1e3 * s / batch_size for name, s in zip(jobs, seconds, strict=True)}
    ms["overhead"] = (ms.pop("reused") - ms["full"]) / n
    floors = {f"vanilla_{n}": n * ms["full"], f"shortcut_{n}_{b}": b * ms["full"] + (n - b) * ms["cheap"]}
    return [
        {"part": part, "ms_per_image": value, "of_full_step": value / ms["full"], "floor_ms": floors.get(part)}
        for part, value in ms.items()
    ]


@hydra.main(config_path=conf_path(), config_name="bench", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Measure, print a table, append JSON lines to `output`."""
    config = load(cfg, BenchConfig)
    base = build(config.base)
    rows = measure(
        base,
        build(config.sampling),
        build(config.shortcut).eval(),
        config.batch_size,
        config.repeats,
        config.evalset["num_classes"],
    )
    table = Table(
        "part",
        "ms an image",
        "of a full step",
        "floor ms",
        title=f"batch {config.batch_size}, {environment(base.device)['device']}",
    )
    for row in rows:
        floor = f"{row['floor_ms']:.2f}" if row["floor_ms"] else ""
        table.add_row(row["part"], f"{row['ms_per_image']:.3f}", f"{row['of_full_step']:.3f}", floor)
    Console().print(table)
    path = Path(config.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    shared = {
        "base": base.fingerprint(),
        "batch_size": config.batch_size,
        "repeats": config.repeats,
        **environment(base.device),
    }
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({**row, **shared, "time": time.strftime("%Y-%m-%dT%H:%M:%S")}) + "\n")
    Console().print(f"appended to {path}")


if __name__ == "__main__":
    main()
