"""Share of the images that a classifier assigns to the class that was asked for."""

import torch
from torch import Tensor

from migm.metrics.metric import Batch, CifarNetMetric
from migm.runtime.files import tensors_hash


class ClassAgreement(CifarNetMetric):
    """`class_agreement` in [0, 1], judged by the bundled CIFAR net."""

    metric_name = "class_agreement"
    unit = ""
    higher_is_better = True
    right: Tensor
    count: Tensor

    def __init__(self, weights: str):
        super().__init__(weights)
        self.reference_hash = tensors_hash(self.net[0].state_dict())
        self.add_state("right", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, batch: Batch) -> None:
        predicted = batch.embedded(self.weights, self.net[0])[1]
        self.right += (predicted == batch.labels.to(predicted.device)).sum()
        self.count += len(predicted)

    def compute(self) -> Tensor:
        return self.right / self.count
