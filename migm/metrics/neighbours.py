"""Kernel Inception Distance, and fidelity and variety by nearest neighbours in Inception's features."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from migm.metrics.inception import FeaturesMetric
from migm.metrics.networks.inception import Inception, ProtocolName
from migm.runtime.errors import UserError
from migm.runtime.extras import optional
from migm.runtime.kinds import Count, Limits

Quantity = Literal["precision", "recall", "density", "coverage"]
ROWS = 10_000  # rows of a distance matrix at once, and images in a chunk of the paper's protocol


class KID(FeaturesMetric):
    """Kernel Inception Distance (Binkowski et al. 2018): torch-fidelity's mean over subsets of the images."""

    quantity = "kid"
    higher_is_better = False
    unbiased = True

    def __init__(
        self,
        inception: Inception,
        protocol: ProtocolName,
        allow_small_n: bool = False,
        reference: str | None = None,
        subset_size: Annotated[int, Limits(least=2)] = 1000,
    ):
        super().__init__(inception, protocol, allow_small_n, reference)
        self.subset_size = subset_size

    def compute(self) -> Tensor:
        generated, real = self.all_features(), self.against()["features"]
        if (count := min(len(generated), len(real))) < self.subset_size:
            raise UserError(f"metric.*.subset_size={self.subset_size} is more than the {count} images")
        score = optional("torch_fidelity.metric_kid").kid_features_to_metric
        values = score(generated, real, kid_subset_size=self.subset_size, verbose=False)
        return torch.tensor(values["kernel_inception_distance_mean"], dtype=torch.float64)


class Neighbours(FeaturesMetric):
    """`quantity`: precision, recall (Kynkaanniemi et al. 2019), density or coverage (Naeem et al. 2020); k = 3.

    Distances are in Inception's features, as in the paper's code; torch-fidelity's default is VGG16.
    The protocol `migm_paper` averages over chunks of 10,000 images; the others take all images at once.
    """

    higher_is_better = True

    def __init__(
        self,
        quantity: Quantity,
        inception: Inception,
        protocol: ProtocolName,
        allow_small_n: bool = False,
        reference: str | None = None,
        k: Count = 3,
    ):
        self.quantity = quantity
        super().__init__(inception, protocol, allow_small_n, reference)
        self.k = k

    def compute(self) -> Tensor:
        generated, real = self.all_features(), self.against()["features"]
        if (count := min(len(generated), len(real))) <= self.k:
            raise UserError(f"metric.*.k={self.k} needs more than {count} images")
        if self.protocol.name != "migm_paper":
            return torch.tensor(self._of(generated, real), dtype=torch.float64)
        chunks = zip(generated.split(ROWS), real.split(ROWS), strict=False)
        parts = [self._of(g, r) for g, r in chunks if min(len(g), len(r)) > self.k]
        return torch.tensor(sum(parts) / len(parts), dtype=torch.float64)

    def _of(self, generated: Tensor, real: Tensor) -> float:
        if self.quantity in ("precision", "recall"):
            score = optional("torch_fidelity.metric_prc").prc_features_to_metric
            values = score(generated, real, prc_neighborhood=self.k, save_cpu_ram=True, verbose=False)
            return values[self.quantity]
        return density_or_coverage(generated, real, self.k)[self.quantity == "coverage"]


def density_or_coverage(generated: Tensor, real: Tensor, k: int) -> tuple[float, float]:
    """Return density and coverage of generated features (n, c) against real ones (m, c).

    A ball surrounds each real image and reaches to its k-th nearest real neighbour. Density is the mean number
    of balls that hold a generated image, over k. Coverage is the share of balls that hold a generated image.
    """
    inside, covered = 0.0, 0
    for centres in real.split(ROWS):
        radius = torch.cdist(centres, real).kthvalue(k + 1).values  # the first is the image itself
        within = torch.cdist(centres, generated) < radius[:, None]
        inside += within.sum().item()
        covered += within.any(1).sum().item()
    return inside / (k * len(generated)), covered / len(real)
