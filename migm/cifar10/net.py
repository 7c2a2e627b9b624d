"""The small feature net behind `fd_cifarnet` and class agreement on CIFAR-10 images."""

import functools

import torch
from torch import Tensor, nn

from migm.bases.weights import assign_strictly, read_tensors


def _conv(cin: int, cout: int, pool: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(cin, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(True)]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(_conv(width, width), _conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class CifarNet(nn.Module):
    """Nine-layer residual classifier of 32x32 images.

    The input is float in [-1, 1], (b, 3, 32, 32). `forward` returns the features (b, channels), which are
    globally averaged activations before the linear classifier, and the logits (b, classes).
    """

    def __init__(self, width: int = 32, num_classes: int = 10):
        super().__init__()
        self.width, self.channels = width, 8 * width
        self.stages = nn.ModuleList(
            [
                _conv(3, width),
                nn.Sequential(_conv(width, 2 * width, pool=True), Residual(2 * width)),
                _conv(2 * width, 4 * width, pool=True),
                nn.Sequential(_conv(4 * width, 8 * width, pool=True), Residual(8 * width)),
            ]
        )
        self.classifier = nn.Linear(8 * width, num_classes)

    def activations(self, images: Tensor) -> list[Tensor]:
        """Return the output of every stage, for a perceptual distance."""
        outputs = []
        for stage in self.stages:
            images = stage(images)
            outputs.append(images)
        return outputs

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.activations(images)[-1].float().mean((2, 3))
        return features, self.classifier(features)

    @torch.inference_mode()
    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map uint8 images (b, 3, 32, 32) to float32 features (b, channels), int64 predicted classes (b,).

        Features are averaged over an image and its mirror image, which predicts the class better than either.
        """
        x = (images.float() / 127.5 - 1).to(self.classifier.weight.device, memory_format=torch.channels_last)
        features = (self(x)[0] + self(x.flip(-1))[0]) / 2
        return features.float(), self.classifier(features).argmax(1)


@functools.cache
def load_cifarnet(weights: str) -> CifarNet:
    """Load the net of a safetensors file, in float32 and eval mode."""
    tensors, _ = read_tensors(weights, "metric.*.weights")
    width = tensors["stages.0.0.weight"].shape[0] if "stages.0.0.weight" in tensors else 32
    net = CifarNet(width, tensors["classifier.weight"].shape[0] if "classifier.weight" in tensors else 10)
    assign_strictly(net, tensors, f"metric.*.weights={weights}")
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
