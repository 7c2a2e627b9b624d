"""Share of what captions mention that the generated images show."""

import torch
from torch import Tensor

from migm.cifar10.captions import LENIENT, facts_of, parse, rules_hash
from migm.cifar10.classes import CLASSES
from migm.metrics.metric import Batch, CifarNetMetric
from migm.runtime.files import tensors_hash


class CaptionAgreement(CifarNetMetric):
    """`caption_agreement` in [0, 1], over all pairs of an image and a fact that its caption mentions.

    The class is the bundled CIFAR net's; brightness and colours are measured as for the captions of
    the training photos, by the more lenient rules (`migm.cifar10.captions`).
    """

    metric_name = "caption_agreement"
    unit = ""
    higher_is_better = True
    right: Tensor
    count: Tensor

    def __init__(self, weights: str):
        super().__init__(weights)
        self.reference_hash = f"{tensors_hash(self.net[0].state_dict())}-{rules_hash()}"
        self.add_state("right", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, batch: Batch) -> None:
        predicted = batch.embedded(self.weights, self.net[0])[1]
        shown = facts_of(batch.images, [CLASSES[label] for label in predicted.tolist()], LENIENT)
        wanted = [parse(prompt) for prompt in batch.prompts]
        pairs = [pair for both in zip(shown, wanted, strict=True) for pair in zip(*both, strict=True)]
        agree = [seen == said for seen, said in pairs if said]
        self.right += sum(agree)
        self.count += len(agree)

    def compute(self) -> Tensor:
        return self.right / self.count
