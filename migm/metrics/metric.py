"""The interface of image metrics, and the batches that they read."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torchmetrics
from jaxtyping import Float
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from migm.bases.base import Inputs
from migm.cifar10.captions import parse
from migm.cifar10.classes import CLASSES
from migm.cifar10.net import CifarNet
from migm.metrics.files import Need
from migm.runtime.errors import UserError
from migm.runtime.files import tensors_hash
from migm.runtime.shapes import Images, PerImage

Extracted = TypeVar("Extracted")


class Batch:
    """Generated images with their labels or prompts; metrics that share an extractor share its result."""

    def __init__(self, images: Images, inputs: Inputs):
        self.images, self.inputs = images, inputs
        self._extracted: dict[str, Any] = {}

    @property
    def labels(self) -> PerImage:
        """Labels (b,); where the inputs are captions, the classes that they name."""
        if isinstance(self.inputs, Tensor):
            return self.inputs
        return torch.tensor([CLASSES.index(parse(prompt).name) for prompt in self.inputs])

    @property
    def prompts(self) -> Sequence[str]:
        if isinstance(self.inputs, Tensor):
            raise UserError("metric: one of the chosen metrics needs prompts, but evalset.inputs gives labels")
        return self.inputs

    def extracted(self, key: str, extract: Callable[[Images], Extracted]) -> Extracted:
        """Return `extract(images)`, computed once for each `key`."""
        if key not in self._extracted:
            self._extracted[key] = extract(self.images)
        return self._extracted[key]

    def embedded(self, key: str, net: CifarNet) -> tuple[Float[Tensor, "b c"], PerImage]:
        """Return features (b, c) and predicted classes (b,) by the net whose weights are `key`."""
        return self.extracted(key, lambda images: net.to(images.device).embed(images))


class QualityMetric(torchmetrics.Metric):
    """Base class of all image metrics, which read `Batch`es; `result_name` gives a metric's name in results.

    By default it asks for no minimum number of images.
    """

    metric_name: str
    unit: str
    reference_hash: str
    full_state_update = False
    min_images = 0
    allow_small_n = False
    unbiased = False  # whether few and many images give the same value on average

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)  # the study merges what several processes saw

    def add_sums(self, *names: str) -> None:
        """Declare states that add up over batches and over processes, in float64."""
        for name in names:
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum", persistent=True)

    def state(self) -> dict[str, Any]:
        """Return all that was accumulated, on the CPU: sums, and lists of tensors in the order of the images."""
        return apply_to_collection(self.metric_state, Tensor, lambda tensor: tensor.detach().cpu())

    def put_before(self, state: dict[str, Any]) -> None:
        """Merge `state`, accumulated over images that precede those seen here."""
        single = {name: value.to(self.device) for name, value in state.items() if isinstance(value, Tensor)}
        self.merge_state({**state, **single})  # torchmetrics puts the incoming state first
        self._update_count = max(self._update_count, 1)  # else it warns that nothing was seen

    @staticmethod
    def needs(_name: str, node: dict[str, Any]) -> list[Need]:
        """Return the files that a metric configured by `node`, under the name `_name`, reads."""
        return [Need(Path(node["weights"]), "bundled; `python -m migm.pretrain` makes it again")]

    def refuse_incomplete(self) -> None:
        """Raise UserError if something is missing without which `compute` must fail."""

    def too_few(self, num_images: int) -> str:
        """Return what is said of fewer images than `min_images`."""
        return (
            f"{self.metric_name} of {num_images} images cannot be compared with any published figure, which need "
            f"{self.min_images:,} or more; raise evalset.num_images, or set metric.<name>.allow_small_n=true"
        )

    def details(self) -> dict[str, Any]:
        """Return further fields of the record, about the images since the last reset."""
        return {}


def result_name(metric: QualityMetric, num_images: int) -> str:
    """Return `{metric_name}_{num_images}`, with `small_n` between where the protocol asks for more images.

    Too few images raise UserError unless the metric's `allow_small_n` is set.
    """
    if num_images >= metric.min_images:
        return f"{metric.metric_name}_{num_images}"
    if not metric.allow_small_n:
        raise UserError(metric.too_few(num_images))
    return f"{metric.metric_name}_small_n_{num_images}"


class MeanMetric(QualityMetric):
    """Base class of means over images of a value per image; higher is better."""

    unit = ""
    higher_is_better = True
    unbiased = True
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sums("total", "count")

    def add(self, scores: Tensor) -> None:
        """Add scores (b,) to the mean."""
        self.total += scores.double().sum().to(self.total.device)
        self.count += len(scores)

    def compute(self) -> Tensor:
        return self.total / self.count


class CifarNetMetric(QualityMetric):
    """Base class of metrics on the bundled feature net, loaded once from `weights`."""

    def __init__(self, weights: str):
        super().__init__()
        from migm.cifar10.net import load_cifarnet

        self.weights = str(weights)
        self.net = [load_cifarnet(weights)]  # a list hides the net from the metric's state


class AgreementMetric(CifarNetMetric):
    """Base class of shares in [0, 1] by the bundled net: `right` of `count` judgements."""

    unit = ""
    higher_is_better = True
    unbiased = True
    right: Tensor
    count: Tensor

    def __init__(self, weights: str, *more: str):
        super().__init__(weights)
        self.reference_hash = "-".join([tensors_hash(self.net[0].state_dict()), *more])
        self.add_sums("right", "count")

    def compute(self) -> Tensor:
        return self.right / self.count
