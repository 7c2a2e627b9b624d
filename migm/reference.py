"""`python -m migm.reference`: what real images give, written to the `reference` of every metric that lacks it."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig

from migm.config import ReferenceConfig, build, conf_path, load
from migm.console import Plain
from migm.evaluation.metrics.inception import InceptionMetric
from migm.evaluation.metrics.metric import Batch
from migm.evaluation.photos import Photos
from migm.progress import progress
from migm.runtime import UserError, command, pick_device
from migm.writing import writing


def missing(metrics: dict[str, Any]) -> dict[Path, InceptionMetric]:
    """The references that are not there, and a metric that gathers what belongs in each."""
    wanted = {}
    for name, node in metrics.items():
        if "reference" not in node or "inception" not in node:
            raise UserError(f"metric={name} has no reference that is made here; choose such as fid_val50k, kid, recall")
        path = Path(str(node["reference"]))
        if not path.exists() and path not in wanted:
            wanted[path] = build({**node, "reference": None})
            wanted[path].refuse_unmade()
    return wanted


def make(wanted: dict[Path, InceptionMetric], photos: Photos, config: ReferenceConfig, console: Plain) -> None:
    """One pass over the photos, then the files."""
    device = pick_device(config.device)
    for metric in wanted.values():
        metric.to(device)
    with progress(console, "images") as bar:
        task = bar.add_task(str(photos.source), total=len(photos))
        for images in photos.batches(config.batch_size, config.num_workers):
            batch = Batch(images.to(device), torch.zeros(len(images), dtype=torch.long))
            for metric in wanted.values():
                metric.update(batch)
            bar.advance(task, len(images))
    for path, metric in wanted.items():
        reference = metric.made_reference()
        reference.save(path)
        console.print(f"{path}: {reference.n} images, protocol {reference.protocol}, hash {reference.hash}")


@hydra.main(config_path=conf_path(), config_name="reference", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Load the config, build, write what is missing."""
    config, console = load(cfg, ReferenceConfig), Plain()
    if config.images is None:
        raise UserError("images=null: give a folder or a zip of real images")
    wanted = missing(config.metric)
    if not wanted:
        console.print("nothing to do: every reference is there; delete a file to make it again")
        return
    with ExitStack() as stack:
        for path in wanted:
            stack.enter_context(writing(path, f"metric.*.reference={path}"))
        make(wanted, Photos(config.images, config.size), config, console)


if __name__ == "__main__":
    main()
