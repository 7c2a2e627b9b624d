"""Train a CIFAR-10 classifier: the net of `fd_cifarnet`, or the smaller net of the tokenizer's perceptual loss."""

import lightning as L
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from migm.cifar10.classes import augment, to_unit
from migm.cifar10.net import CifarNet
from migm.pretraining.fit import step_generator


class FeatureNetModule(L.LightningModule):
    """Classification with label smoothing, SGD with Nesterov momentum and a one-cycle schedule."""

    def __init__(self, net: CifarNet, seed: int, learning_rate: float, weight_decay: float = 5e-4):
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)
        self.seed, self.learning_rate, self.weight_decay = seed, learning_rate, weight_decay

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        images = augment(images, step_generator(self.seed, self.global_step))
        _, logits = self.net(to_unit(images).contiguous(memory_format=torch.channels_last))
        loss = cross_entropy(logits, labels, label_smoothing=0.1)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(
            self.parameters(), self.learning_rate, momentum=0.9, nesterov=True, weight_decay=self.weight_decay
        )
        total = int(self.trainer.max_steps)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total, pct_start=0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.inference_mode()
def accuracy(net: CifarNet, images: Tensor, labels: Tensor, batch_size: int = 500) -> float:
    """Return the share in [0, 1] of uint8 images (n, 3, 32, 32) whose predicted class equals the label."""
    net = net.eval()
    batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    right = [(net.embed(x)[1].cpu() == y).sum() for x, y in batches]
    return float(torch.stack(right).sum()) / len(labels)
