"""The Inception network of FID and related metrics, and the protocols that prepare its input.

The network is torch-fidelity's, with TensorFlow's weights of 2015, which all published FIDs use.
Publications differ in how they prepare images and in their reference: each such habit has a name here.
"""

import functools
import io
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from migm.bases.weights import assign_strictly, read_tensors
from migm.metrics.files import required
from migm.runtime.extras import optional
from migm.runtime.files import tensors_hash

SIDE = 299  # pixels of the network's input
Feature = Literal["64", "192", "768", "2048"]
ProtocolName = Literal["adm", "val50k", "migm_paper", "clean"]
# torch-fidelity's name of a feature -> number of layers up to the feature.
CHILDREN: dict[Feature, int] = {"64": 4, "192": 7, "768": 15, "2048": 18}
ADM_URL = (
    "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/512/VIRTUAL_imagenet512.npz"
)
IMAGENET = "the 50,000 ImageNet validation images"
CENTRES = "size=512 images=<the 50,000 images of ILSVRC2012's validation set, from image-net.org>"
URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"


@dataclass(frozen=True)
class Protocol:
    """Preparation of images for the network, and the real images to compare with."""

    name: str
    real: str  # the reference images
    source: str  # an address, or arguments of `python -m migm.metric_reference`
    stretch: bool = False  # each image's own minimum and maximum become 0 and 255
    clean: bool = False  # PIL's antialiased bicubic resize, not TensorFlow 1's bilinear one without antialiasing
    foreign: bool = False  # reads statistics of third parties, which do not say how they were made
    made: bool = True  # by `python -m migm.metric_reference`, from real images; else published

    def prepare(self, images: Tensor) -> Tensor:
        """Map uint8 (b, 3, h, w) to float32 (b, 3, 299, 299) in [0, 255]."""
        if self.stretch:
            images = stretched(images)
        if self.clean:
            return _clean_resize(images)
        resize = optional("torch_fidelity.interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
        return resize(images.float(), size=(SIDE, SIDE), align_corners=False)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("adm", "ADM's statistics of the ImageNet training set", ADM_URL, foreign=True, made=False),
        Protocol("val50k", IMAGENET, CENTRES),
        # As the code of arXiv 2602.23996 does it.
        Protocol("migm_paper", IMAGENET, CENTRES, stretch=True),
        Protocol("clean", "a folder of real images", "images=<a folder or zip of them>", clean=True, foreign=True),
    )
}


def stretched(images: Tensor) -> Tensor:
    """Stretch each image of uint8 (b, 3, h, w) to the full range 0...255, rounded down; a constant image becomes 0.

    The paper's code stretches before rounding to 8 bits, so that its values may be one level higher.
    """
    x = images.float()
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return ((x - low) / (high - low).clamp(min=1) * 255).to(torch.uint8)


def _clean_resize(images: Tensor) -> Tensor:
    resize = optional("cleanfid.resize").build_resizer("clean")
    resized = [torch.from_numpy(resize(image.permute(1, 2, 0).cpu().numpy())) for image in images]
    return torch.stack(resized).permute(0, 3, 1, 2).to(images.device)


class Inception:
    """torch-fidelity's network up to the layer `feature`."""

    def __init__(self, net: nn.Module, feature: Feature, random_weights: bool):
        self.net, self.feature, self.random_weights = net, feature, random_weights
        self.layers = nn.Sequential(*list(net.children())[: CHILDREN[feature]])
        self.channels = int(feature)
        self.classifier = net.get_submodule("fc").get_parameter("weight")  # (1008, 2048)
        self.hash = tensors_hash(net.state_dict(), feature)

    @torch.inference_mode()
    def features(self, images: Tensor, protocol: Protocol) -> Tensor:
        """Map uint8 (b, 3, h, w) to float32 (b, channels)."""
        x = (protocol.prepare(images) - 128) / 128
        x = self.layers.to(images.device)(x)
        return nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)

    @torch.inference_mode()
    def logits(self, features: Tensor) -> Tensor:
        """Map features (b, 2048) to logits (b, 1008) without bias, the input of the Inception Score."""
        return features @ self.classifier.to(features.device).T


@functools.cache
def load_inception(
    weights: str = "",
    sha256: str = "6726825d",
    offline: bool = False,
    random_weights: bool = False,
    feature: Feature = "2048",
) -> Inception:
    """Load the network from a file whose SHA-256 begins with `sha256`, or with random weights for tests."""
    net = _empty()
    if random_weights:
        for conv in (module for module in net.modules() if isinstance(module, nn.Conv2d)):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # torch's default fades within 20 layers
    else:
        key = "inception.weights"
        path = required(weights, sha256, URL, offline, key)
        assign_strictly(net, read_tensors(path, key)[0], f"{key}={path}")
    return Inception(net, feature, random_weights)


def _empty() -> nn.Module:
    """Return torch-fidelity's network before any weights, in eval mode."""
    extractor = optional("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3

    class Empty(extractor):  # type: ignore[misc, valid-type]
        def load_state_dict(self, state_dict, strict=True, assign=False):
            return super().load_state_dict(state_dict, strict=bool(state_dict) and strict, assign=assign)

    # The constructor unpickles a file and would run any code in it, so it gets an empty file of ours.
    file = io.BytesIO()
    torch.save({}, file)
    file.seek(0)
    return Empty("inception", ["2048"], feature_extractor_weights_path=file)
