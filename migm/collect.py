"""`python -m migm.collect`: run the vanilla base and store its trajectories."""

import shutil
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from rich.console import Console

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.refresh import Always
from migm.bases.base import Base
from migm.config import CollectConfig, build, conf_path, load
from migm.progress import progress
from migm.runtime import UserError, command, world_size
from migm.sampling.loop import Sampling, generate_images
from migm.trajectories.datamodule import TrajectoryData
from migm.trajectories.maskgit_tars import export_tars, import_tars
from migm.trajectories.record import Recorder, Trajectories
from migm.trajectories.store import Store, estimate_bytes

DTYPE = torch.bfloat16  # of stored features


def header(base: Base, sampling: Sampling, seed: int, sampling_config: Any) -> dict[str, Any]:
    """What the first manifest line says, and what a store has to match to be used."""
    branches = base.encode(torch.zeros(1, dtype=torch.long), guided=sampling.guidance is not None)
    return {
        "base": base.fingerprint(),
        "storage": "features",
        "dtype": str(DTYPE).removeprefix("torch."),
        "copies": sum(branch.copies for branch in branches),
        "num_steps": sampling.num_steps,
        "seed": seed,
        "sampling": sampling_config,
    }


def trajectory_sampling(sampling_config: dict[str, Any]) -> dict[str, Any]:
    """What of the sampling shapes a trajectory: all but B, since the vanilla base makes it."""
    return {key: value for key, value in sampling_config.items() if key != "num_full_steps"}


def collect(
    base: Base, sampling: Sampling, data: TrajectoryData, seed: int, classes: int, sampling_config: Any
) -> Store:
    """Fill the store of `data` up to its `num_images`; labels and noise depend on (seed, image) alone."""
    store = Store(data.folder, header(base, sampling, seed, sampling_config))
    missing, console = data.num_images - len(store), Console()
    if missing <= 0:
        console.print(f"{len(store)} trajectories in {data.folder}: nothing to collect")
        return store
    if world_size() > 1:
        raise UserError(f"{missing} trajectories are missing in {data.folder}: run migm.collect in one process first")
    rows, seconds = probe(base, sampling, min(data.collect_batch_size, missing))
    size = estimate_bytes(missing, store.header["copies"], sampling.num_steps, rows, base.spec.channels, DTYPE)
    duration = timedelta(seconds=round(seconds * missing * sampling.num_steps))
    console.print(f"collecting {missing} trajectories: {size / 1e9:.2f} GB into {data.folder}, about {duration}")
    refuse_full_disk(data.folder, size)
    vanilla = Accelerator(Always())
    with progress(console, "images") as bar:
        task = bar.add_task("collect", total=missing)
        for start in range(len(store), data.num_images, data.shard_images):
            images = torch.arange(start, min(start + data.shard_images, data.num_images))
            store.append(record(base, sampling, vanilla, images, seed, data.collect_batch_size, classes))
            bar.advance(task, len(images))
    return store


def probe(base: Base, sampling: Sampling, batch_size: int) -> tuple[int, float]:
    """Rows of the features, and seconds per image of one full step (the second of two)."""
    branches = base.encode(torch.zeros(batch_size, dtype=torch.long), guided=sampling.guidance is not None)
    tokens = torch.full((batch_size, base.spec.num_tokens), base.spec.vocab_size, device=base.device)
    ratio, rows, seconds = torch.ones(batch_size, device=base.device), 0, 0.0
    for _ in range(2):
        start = time.perf_counter()
        with torch.inference_mode():
            rows = max(base.features(tokens, branch, ratio).cpu().shape[1] for branch in branches)
        seconds = (time.perf_counter() - start) / batch_size
    return rows, seconds


def refuse_full_disk(folder: Path, size: int) -> None:
    """Stop before anything is written when the disk cannot hold it."""
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if size > 0.95 * free:
        raise UserError(
            f"data.num_images: the trajectories need {size / 1e9:.1f} GB, {existing} has {free / 1e9:.1f} GB free; "
            "lower data.num_images or choose another data.folder"
        )


def record(
    base: Base, sampling: Sampling, vanilla: Accelerator, images: torch.Tensor, seed: int, batch_size: int, classes: int
) -> Trajectories:
    """Trajectories of the images numbered `images`, the classes in turn, generated in batches."""
    parts = []
    for batch in images.split(batch_size):
        recorder, labels = Recorder(DTYPE), batch % classes
        generate_images(base, labels, batch, seed, sampling=sampling, accelerator=vanilla, observers=[recorder])
        parts.append(vars(recorder.trajectories(labels, batch)))
    return Trajectories(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


@hydra.main(config_path=conf_path(), config_name="collect", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Load the config, build, collect."""
    config = load(cfg, CollectConfig)
    base, sampling, data = build(config.base), build(config.sampling), build(config.data)
    described = trajectory_sampling(config.sampling)
    if config.import_from:
        store = Store(data.folder, header(base, sampling, config.seed, described))
        follow("import", import_tars(config.import_from, store, base, data.shard_images, DTYPE))
        Console().print(f"{len(store)} trajectories in {data.folder}")
    else:
        store = collect(base, sampling, data, config.seed, config.evalset["num_classes"], described)
    if config.export_to:
        follow("export", export_tars(store, config.export_to, base), total=len(store))
        Console().print(f"{len(store)} trajectories in {config.export_to}")


def follow(what: str, counts: Iterator[int], total: int | None = None) -> None:
    """Run an import or export to its end, showing the images done."""
    with progress(Console(), "images") as bar:
        task = bar.add_task(what, total=total)
        for count in counts:
            bar.advance(task, count)


if __name__ == "__main__":
    main()
