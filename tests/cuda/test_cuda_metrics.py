"""Metrics on a pretended CUDA device see what they see on the CPU, after a stop and before others too."""

import copy
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pretend_cuda import pretended
from tiny_parts import ROOT, feature_net, reference_for
from torch import Tensor

from migm.metrics.caption_agreement import CaptionAgreement
from migm.metrics.class_agreement import ClassAgreement
from migm.metrics.clip_score import CLIPScore
from migm.metrics.extrapolated import FrechetCifarNetInf
from migm.metrics.frechet import FrechetCifarNet
from migm.metrics.inception import FID
from migm.metrics.kernel import KernelCifarNet
from migm.metrics.metric import Batch, MeanMetric, QualityMetric
from migm.metrics.neighbours import KID, Neighbours
from migm.metrics.networks.image_reward import ImageRewardScorer, RewardModel, reward_tokenizer
from migm.metrics.networks.inception import Inception, load_inception

ALIKE = ("fid_", "clip_score_", "density", "precision", "recall", "inception_score")
CAPTIONS = ["a dark photo of a red truck", "a photo of a blue bird on a green background", "a photo of a cat"]


def images(count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)


class SmallReward(MeanMetric):
    """The reward of a small network, as ImageReward asks the published one."""

    def __init__(self, folder: Path):
        super().__init__()
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "red", "truck", "cat", "bird"]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
        net = RewardModel(vision_channels=64, vision_layers=1, vision_heads=2, text_layers=1, vocab_size=len(words) + 2)
        self.score = ImageRewardScorer(net, reward_tokenizer(folder / "vocab.txt", "vocab"))

    def update(self, batch: Batch) -> None:
        self.add(self.score(batch.images, batch.prompts))


@functools.cache
def random_inception() -> Inception:
    """Made once, since its many weights take seconds; its first layers alone."""
    torch.manual_seed(0)
    return load_inception.__wrapped__(random_weights=True, feature="64")


def inception(kind: Callable[..., Any], **more: Any) -> Callable[[Path], QualityMetric]:
    """Makes a metric on a copy of random Inception features, against those of the same images inverted."""

    def make(folder: Path) -> QualityMetric:
        options = {"inception": copy.deepcopy(random_inception()), "protocol": "val50k", **more}
        made = kind(**options)
        made.update(Batch(255 - images(), torch.zeros(6, dtype=torch.long)))
        made.made_reference().save(folder / "reference.npz")
        return kind(**options, reference=str(folder / "reference.npz"))

    return make


MADE: dict[str, Callable[[Path], QualityMetric]] = {
    "fd_cifarnet": lambda folder: FrechetCifarNet(str(folder / "net.safetensors"), str(folder / "real.safetensors")),
    "fd_cifarnet_inf": lambda f: FrechetCifarNetInf(str(f / "net.safetensors"), str(f / "real.safetensors")),
    "kd_cifarnet": lambda f: KernelCifarNet(str(f / "net.safetensors"), str(f / "real.safetensors")),
    "class_agreement": lambda folder: ClassAgreement(str(folder / "net.safetensors")),
    "caption_agreement": lambda folder: CaptionAgreement(str(folder / "net.safetensors")),
    "clip_score": lambda _: CLIPScore("ViT-S-32-alt", "none", random_weights=True),
    "image_reward": SmallReward,
    "fid": inception(FID),
    "kid": inception(KID, subset_size=4),
    "coverage": inception(Neighbours, quantity="coverage", k=2),
}


def measured(metric: Any, device: str) -> float:
    """The value after two batches, the first of which came back from a stop."""
    metric.reset()
    metric.to(torch.device(device))
    first, second = (Batch(part.to(metric.device), CAPTIONS) for part in images().split(3))
    metric.update(first)
    state = metric.state()
    assert all(x.device.type == "cpu" for x in state.values() if isinstance(x, Tensor))
    metric.reset()
    metric.put_before(state)
    metric.update(second)
    return metric.compute().item()


@pytest.mark.parametrize("name", MADE)
def test_a_metric_sees_on_cuda_what_it_sees_on_the_cpu(tmp_path, name):
    reference_for(feature_net(tmp_path / "net.safetensors"), tmp_path / "real.safetensors")
    metric = MADE[name](tmp_path)
    wanted = measured(metric, "cpu")
    with pretended():
        found = measured(metric, "cuda:0")
    assert found == pytest.approx(wanted, rel=1e-9)
    assert math.isfinite(wanted)


def test_every_metric_that_runs_here_is_among_them():
    """The others run in environments of their own, or differ by a name or by what is worked out on the CPU."""
    every = {path.stem for path in (ROOT / "conf" / "metric").glob("*.yaml")} - {"none", "unipercept"}
    assert every <= {*MADE, *(name for name in every if name.startswith(ALIKE))}
