"""Share of the images that a classifier assigns to the class that was asked for."""

from migm.metrics.metric import AgreementMetric, Batch


class ClassAgreement(AgreementMetric):
    """`class_agreement` in [0, 1], judged by the bundled CIFAR net."""

    metric_name = "class_agreement"

    def update(self, batch: Batch) -> None:
        predicted = batch.embedded(self.weights, self.net[0])[1]
        self.right += (predicted == batch.labels.to(predicted.device)).sum()
        self.count += len(predicted)
