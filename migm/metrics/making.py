"""What real images give, written to the reference of every metric that lacks it."""

from pathlib import Path
from typing import Any

import torch

from migm.cifar10.photos import Photos
from migm.config.building import build
from migm.config.roots import MetricReferenceConfig
from migm.metrics.inception import InceptionMetric
from migm.metrics.metric import Batch
from migm.runtime.console import Plain
from migm.runtime.device import pick_device
from migm.runtime.errors import UserError
from migm.runtime.progress import progress


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


def make(wanted: dict[Path, InceptionMetric], photos: Photos, config: MetricReferenceConfig, console: Plain) -> None:
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
