"""The bundled weights: small, complete, and a base whose samples are what was asked for."""

from pathlib import Path

import torch
from tiny_parts import composed

from migm.config.building import asset_path, build, load
from migm.config.roots import TrainConfig
from migm.metrics.metric import Batch
from migm.sampling.sampler import Sampler


def test_assets_are_under_30_mb_and_described():
    folder = Path(asset_path())
    files = list(folder.glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) < 30e6
    described = (folder / "README.md").read_text()
    assert all(file.name in described for file in files)


def test_most_samples_are_recognised_as_their_class():
    config = load(composed("train", "device=cpu"), TrainConfig)
    sampler = Sampler(build(config.base), build({**config.sampling, "num_steps": 8, "num_full_steps": 8}))
    agreement = build(config.metric["class_agreement"])
    images = torch.arange(100)
    agreement.update(Batch(sampler.images(images % 10, 1, images), images % 10))
    assert agreement.compute() > 0.65
