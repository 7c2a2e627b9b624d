"""The bundled weights: small, complete, and a base whose samples are what was asked for."""

from pathlib import Path

import torch
from tiny_parts import composed

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.refresh import Always
from migm.config.building import asset_path, build, load
from migm.config.roots import TrainConfig
from migm.metrics.metric import Batch
from migm.sampling.loop import generate_images


def test_assets_are_under_30_mb_and_described():
    folder = Path(asset_path())
    files = list(folder.glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) < 30e6
    described = (folder / "README.md").read_text()
    assert all(file.name in described for file in files)


def test_most_samples_are_recognised_as_their_class():
    config = load(composed("train", "device=cpu"), TrainConfig)
    base, sampling = build(config.base), build({**config.sampling, "num_steps": 8, "num_full_steps": 8})
    agreement = build(config.metric["class_agreement"])
    images = torch.arange(100)
    tokens = generate_images(base, images % 10, images, 1, sampling=sampling, accelerator=Accelerator(Always()))
    agreement.update(Batch(base.decode(tokens), images % 10))
    assert agreement.compute() > 0.65
