"""What an image metric declares, and the batch it is given."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torchmetrics
from torch import Tensor

from migm.bases.base import Inputs
from migm.evaluation.captions import parse
from migm.evaluation.cifarnet import CifarNet
from migm.pretraining.cifar10 import CLASSES
from migm.runtime import UserError


class Batch:
    """Generated images with what they were asked to show; metrics that share an extractor share its work."""

    def __init__(self, images: Tensor, inputs: Inputs):
        self.images, self.inputs = images, inputs  # uint8 (b, 3, h, w), labels (b,) or b prompts
        self._embedded: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def labels(self) -> Tensor:
        """Labels (b,); of prompts that are captions, their classes."""
        if isinstance(self.inputs, Tensor):
            return self.inputs
        return torch.tensor([CLASSES.index(parse(prompt).name) for prompt in self.inputs])

    @property
    def prompts(self) -> Sequence[str]:
        if isinstance(self.inputs, Tensor):
            raise UserError("metric: one of the chosen metrics needs prompts, but evalset.inputs gives labels")
        return self.inputs

    def embedded(self, key: str, net: CifarNet) -> tuple[Tensor, Tensor]:
        """Features (b, channels) and predicted classes (b,) by the net whose weights are `key`."""
        if key not in self._embedded:
            self._embedded[key] = net.to(self.images.device).embed(self.images)
        return self._embedded[key]


class ImageMetric(Protocol):
    """A torchmetrics.Metric fed with `Batch`es; its name in results is `{metric_name}_{count}`."""

    metric_name: str
    unit: str
    higher_is_better: bool
    reference_hash: str

    def update(self, batch: Batch) -> None: ...

    def compute(self) -> Tensor: ...

    def reset(self) -> None: ...

    def to(self, device: torch.device) -> Any: ...


class CifarNetMetric(torchmetrics.Metric):
    """A metric on the bundled feature net, loaded once from `weights`."""

    full_state_update = False

    def __init__(self, weights: str):
        super().__init__(sync_on_compute=False)  # one process measures; others may be gone by then
        from migm.evaluation.cifarnet import load_cifarnet

        self.weights = str(weights)
        self.net = [load_cifarnet(weights)]  # in a list: no state of the metric
