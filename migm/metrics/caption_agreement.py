"""Share of the facts in captions that the generated images show."""

import torch
from torch import Tensor

from migm.cifar10.captions import LENIENT, facts_of, parse, rules_hash
from migm.cifar10.classes import CLASSES
from migm.metrics.metric import Batch, CifarNetMetric
from migm.runtime.files import tensors_hash


class CaptionAgreement(CifarNetMetric):
    """`caption_agreement` in [0, 1]: the share of the mentioned facts that the images show, over all images.

    The bundled CIFAR net predicts the class. Brightness and colours are measured as for the captions of the
    training photos, but by the more lenient rules of `migm.cifar10.captions`.
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
        mentioned = [parse(prompt) for prompt in batch.prompts]
        pairs = [
            pair
            for shown_and_mentioned in zip(shown, mentioned, strict=True)
            for pair in zip(*shown_and_mentioned, strict=True)
        ]
        agree = [seen == said for seen, said in pairs if said]
        self.right += sum(agree)
        self.count += len(agree)

    def compute(self) -> Tensor:
        return self.right / self.count
