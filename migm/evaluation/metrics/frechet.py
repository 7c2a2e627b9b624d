"""Frechet distance between generated and reference images, from streaming float64 sums."""

import torch
from torch import Tensor

from migm.bases.weights import read_tensors
from migm.evaluation.metrics.metric import Batch, CifarNetMetric
from migm.runtime import UserError, tensors_hash


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), Heusel et al. 2017; float64 (c,) and (c, c) -> scalar.

    The trace of the root is the sum of the roots of AB's eigenvalues, which are real and not
    negative; rounding errors below zero count as zero.
    """
    eigenvalues = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0)
    return (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * eigenvalues.sqrt().sum()


def moments(count: Tensor, total: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (c,) and unbiased covariance (c, c) from count, sum and sum of outer products."""
    mean = total / count
    return mean, (outer - count * mean.outer(mean)) / (count - 1)


class FrechetCifarNet(CifarNetMetric):
    """`fd_cifarnet`: distance to reference statistics in the features of the bundled net.

    `reference` holds mean and covariance in float64 and the hash of the net that made them;
    another net is refused.
    """

    metric_name = "fd_cifarnet"
    unit = ""
    higher_is_better = False
    count: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, weights: str, reference: str):
        super().__init__(weights)
        tensors, metadata = read_tensors(reference, "evalset.reference")
        net_hash = tensors_hash(self.net[0].state_dict())
        if metadata.get("net") != net_hash:
            raise UserError(
                f"evalset.reference={reference} was made with net {metadata.get('net')}, metric weights {weights} are "
                f"{net_hash}; make it again with migm.pretrain stages=[reference]"
            )
        self.reference, self.reference_hash = tensors, tensors_hash(tensors)
        c = self.net[0].channels
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(c, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("outer", torch.zeros(c, c, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, batch: Batch) -> None:
        features = batch.embedded(self.weights, self.net[0])[0].double()
        self.count += len(features)
        self.total += features.sum(0)
        self.outer += features.T @ features

    def compute(self) -> Tensor:
        if self.count < 2:
            raise UserError("fd_cifarnet needs at least 2 images (evalset.num_images)")
        return frechet_distance(
            *moments(self.count.cpu(), self.total.cpu(), self.outer.cpu()),
            self.reference["mean"],
            self.reference["cov"],
        )
