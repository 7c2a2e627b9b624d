"""Frechet distance between generated and reference images, from streaming float64 sums."""

import torch
from torch import Tensor

from migm.bases.weights import read_tensors
from migm.metrics.metric import Batch, CifarNetMetric, QualityMetric
from migm.runtime.errors import UserError
from migm.runtime.files import tensors_hash


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    """Return |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al. 2017); float64 (c,), (c, c) -> scalar.

    With A = P P' and B = Q Q' the trace of the root is the sum of the singular values of P' Q. They stay exact
    with fewer images than channels. Square roots of the eigenvalues of A B do not: they turn a rounding error
    of 1e-16 into one of 1e-8.
    """
    roots = torch.linalg.svdvals(_factor(cov_a).T @ _factor(cov_b)).sum()
    return (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * roots


def _factor(cov: Tensor) -> Tensor:
    """Return P (c, rank) with P P' = cov, without the directions that float64 cannot tell from zero."""
    values, vectors = torch.linalg.eigh(cov)
    kept = values > len(values) * torch.finfo(cov.dtype).eps * values[-1]
    return vectors[:, kept] * values[kept].sqrt()


def moments(count: Tensor, total: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (c,) and unbiased covariance (c, c) from count, sum and sum of outer products."""
    mean = total / count
    return mean, (outer - count * mean.outer(mean)) / (count - 1)


class MomentsMetric(QualityMetric):
    """Base class that sums features and their outer products in float64, over batches and over processes."""

    count: Tensor
    total: Tensor
    outer: Tensor

    def add_moments(self, channels: int) -> None:
        """Declare the sums as states of the metric."""
        self.add_sums("count")
        self.add_state("total", torch.zeros(channels, dtype=torch.float64), dist_reduce_fx="sum", persistent=True)
        outer = torch.zeros(channels, channels, dtype=torch.float64)
        self.add_state("outer", outer, dist_reduce_fx="sum", persistent=True)

    def add(self, features: Tensor) -> None:
        """Add features (b, channels) to the sums."""
        features = features.double()
        self.count += len(features)
        self.total += features.sum(0)
        self.outer += features.T @ features

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean (channels,) and covariance (channels, channels) of all features so far, on the CPU."""
        if self.count < 2:
            raise UserError(f"{self.metric_name} needs at least 2 images (evalset.num_images)")
        return moments(self.count.cpu(), self.total.cpu(), self.outer.cpu())


class FrechetCifarNet(CifarNetMetric, MomentsMetric):
    """`fd_cifarnet`: Frechet distance to reference statistics, in the features of the bundled net.

    The file `reference` holds mean and covariance in float64, and the hash of the net that made them. A
    reference made by another net raises UserError.
    """

    metric_name = "fd_cifarnet"
    unit = ""
    higher_is_better = False

    def __init__(self, weights: str, reference: str | None):
        super().__init__(weights)
        tensors, metadata = read_tensors(reference, "evalset.reference")
        net_hash = tensors_hash(self.net[0].state_dict())
        if metadata.get("net") != net_hash:
            raise UserError(
                f"evalset.reference={reference} was made with net {metadata.get('net')}, metric weights {weights} are "
                f"{net_hash}; make it again with migm.pretrain stages=[reference]"
            )
        self.reference, self.reference_hash = tensors, tensors_hash(tensors)
        self.add_moments(self.net[0].channels)

    def update(self, batch: Batch) -> None:
        self.add(batch.embedded(self.weights, self.net[0])[0])

    def compute(self) -> Tensor:
        return frechet_distance(*self.moments(), self.reference["mean"], self.reference["cov"])
