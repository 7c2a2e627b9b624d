"""`python -m migm.generate`: a grid of images for labels and seeds, by any accelerator."""

import time
from pathlib import Path
from types import SimpleNamespace

import hydra
import torch
from omegaconf import DictConfig
from rich.console import Console

from migm.bases.base import Base
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
    if config.labels == [] or config.seeds == []:
        raise UserError(f"labels={config.labels}, seeds={config.seeds}: give at least one of each, or null")
    base, sampling, accelerator = build(config.base), build(config.sampling), build(config.accelerator)
    labels, seeds, console = *grid(config, base), Console()
    rows, sampled, decoded = [], 0.0, 0.0
    with progress(console, "steps") as bar:
        task = bar.add_task("generate", total=len(labels) * sampling.num_steps)
        watch = SimpleNamespace(on_step=lambda _: bar.advance(task))
        for label in labels:
            start = time.perf_counter()
            tokens = generate_images(
                base,
                label.expand(len(seeds)),
                seeds,
                config.seed,
                sampling=sampling,
                accelerator=accelerator,
                observers=[watch],
            )
            tokens[0, 0].item()  # a GPU has finished now
            middle = time.perf_counter()
            rows.append(base.decode(tokens).cpu())
            sampled, decoded = sampled + middle - start, decoded + time.perf_counter() - middle
    images = torch.cat(rows)
    save_grid(images, Path(config.output), len(seeds), scale=3 if images.shape[-1] < 100 else 1)
    step, each = sampled / (len(images) * sampling.num_steps), decoded / len(images)
    console.print(
        f"{len(images)} images of {images.shape[-1]}x{images.shape[-2]}: {1e3 * step:.2f} ms a step, "
        f"{1e3 * each:.2f} ms decoding each, in {config.output}"
    )


def grid(config: GenerateConfig, base: Base) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and seeds, by default ten classes by eight seeds, or by one where images are large and take long."""
    labels = range(min(10, config.evalset["num_classes"])) if config.labels is None else config.labels
    seeds = range(8 if base.spec.num_tokens <= 256 else 1) if config.seeds is None else config.seeds
    return torch.tensor(list(labels)), torch.tensor(list(seeds))


if __name__ == "__main__":
    main()
