"""`python -m migm.generate`: a grid of images for labels and seeds, by any accelerator."""

import time
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig
from rich.console import Console

from migm.config import GenerateConfig, build, conf_path, load
from migm.evaluation.study import save_grid
from migm.progress import progress
from migm.runtime import UserError, command
from migm.sampling.loop import generate_images


@hydra.main(config_path=conf_path(), config_name="generate", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """One row per label, one column per seed; a seed is the number of an image in the run of `seed`."""
    config = load(cfg, GenerateConfig)
    if not config.labels or not config.seeds:
        raise UserError(f"labels={config.labels}, seeds={config.seeds}: give at least one of each")
    base, sampling, accelerator = build(config.base), build(config.sampling), build(config.accelerator)
    seeds, labels, console = torch.tensor(config.seeds), torch.tensor(config.labels), Console()
    rows, start = [], time.perf_counter()
    with progress(console, "labels") as bar:
        task = bar.add_task("generate", total=len(labels))
        for label in labels:
            tokens = generate_images(
                base, label.expand(len(seeds)), seeds, config.seed, sampling=sampling, accelerator=accelerator
            )
            rows.append(base.decode(tokens).cpu())
            bar.advance(task)
    seconds = (time.perf_counter() - start) / (len(labels) * len(seeds))
    save_grid(torch.cat(rows), Path(config.output), len(seeds), scale=3)
    console.print(f"{len(labels) * len(seeds)} images, {seconds * 1e3:.1f} ms each with decoding, in {config.output}")


if __name__ == "__main__":
    main()
