"""Make the missing references of metrics from real images."""

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
    """Map the path of every reference that does not exist to a metric that gathers its content."""
    gatherers = {}
    for name, node in metrics.items():
        if "reference" not in node or "inception" not in node:
            raise UserError(f"metric={name} has no reference that is made here; choose such as fid_val50k, kid, recall")
        path = Path(str(node["reference"]))
        if not path.exists() and path not in gatherers:
            gatherers[path] = build({**node, "reference": None})
            gatherers[path].refuse_unmade()
    return gatherers


def make(gatherers: dict[Path, InceptionMetric], photos: Photos, config: MetricReferenceConfig, console: Plain) -> None:
    """Show all photos to the metrics once, then write the file of each."""
    device = pick_device(config.device)
    for metric in gatherers.values():
        metric.to(device)
    with progress(console, "images") as bar:
        task = bar.add_task(str(photos.source), total=len(photos))
        for images in photos.batches(config.batch_size, config.num_workers):
            batch = Batch(images.to(device), torch.zeros(len(images), dtype=torch.long))
            for metric in gatherers.values():
                metric.update(batch)
            bar.advance(task, len(images))
    for path, metric in gatherers.items():
        reference = metric.made_reference()
        reference.save(path)
        console.print(f"{path}: {reference.n} images, protocol {reference.protocol}, hash {reference.hash}")
