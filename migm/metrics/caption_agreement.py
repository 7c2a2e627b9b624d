"""Share of the facts in captions that the generated images show."""

from migm.cifar10.captions import LENIENT, facts_of, parse, rules_hash
from migm.cifar10.classes import CLASSES
from migm.metrics.metric import AgreementMetric, Batch


class CaptionAgreement(AgreementMetric):
    """`caption_agreement` in [0, 1]: the share of the mentioned facts that the images show, over all images.

    The bundled CIFAR net predicts the class. Brightness and colours are measured as for the captions of the
    training photos, but by the more lenient rules of `migm.cifar10.captions`.
    """

    metric_name = "caption_agreement"

    def __init__(self, weights: str):
        super().__init__(weights, rules_hash())

    def update(self, batch: Batch) -> None:
        predicted = batch.embedded(self.weights, self.net[0])[1]
        shown = facts_of(batch.images, [CLASSES[label] for label in predicted.tolist()], LENIENT)
        mentioned = [parse(prompt) for prompt in batch.prompts]
        agree = [
            seen == said
            for of_image, of_caption in zip(shown, mentioned, strict=True)
            for seen, said in zip(of_image, of_caption, strict=True)
            if said
        ]
        self.right += sum(agree)
        self.count += len(agree)
