"""CIFAR-10 in memory: 50,000 + 10,000 photos of 32x32 pixels in ten classes."""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from migm.runtime.reading import read_picture, unasked

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load(folder: str | Path, split: str) -> tuple[Tensor, Tensor]:
    """Read one split.

    `folder` holds `cifar10-{train,test}.zip` (entries `<class>/<id>.jpg`), or torchvision's own copy,
    which may be downloaded. Returns uint8 images (n, 3, 32, 32) and int64 labels (n,), in a fixed order.
    """
    archive = Path(folder) / f"cifar10-{split}.zip"
    if archive.exists():
        return _from_zip(archive)
    from torchvision.datasets import CIFAR10

    try:
        data = CIFAR10(folder, train=split == "train", download=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"paths.cifar10={folder}: no {archive.name} here and torchvision could not download CIFAR-10 ({error})"
        ) from error
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(data.targets)


def _from_zip(archive: Path) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    with zipfile.ZipFile(archive) as pack:
        for name in sorted(n for n in pack.namelist() if n.endswith(".jpg") and not unasked(n)):
            images.append(np.asarray(read_picture(io.BytesIO(pack.read(name)), f"{archive}: {name}")))
            labels.append(CLASSES.index(name.split("/")[0]))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def to_unit(images: Tensor) -> Tensor:
    """Map uint8 [0, 255] to float32 [-1, 1], the range of tokenizer and feature net."""
    return images.float() / 127.5 - 1


def augment(images: Tensor, generator: torch.Generator, pad: int = 2) -> Tensor:
    """Flip and crop each image at random, after reflection padding by `pad`; (b, 3, h, w) -> (b, 3, h, w)."""
    b, _, h, w = images.shape
    flip = torch.rand(b, generator=generator) < 0.5
    images = torch.where(flip.to(images.device)[:, None, None, None], images.flip(-1), images)
    padded = torch.nn.functional.pad(images, (pad,) * 4, mode="reflect")
    offsets = torch.randint(0, 2 * pad + 1, (2, b, 1), generator=generator)
    rows = (offsets[0] + torch.arange(h))[:, None, :, None].to(images.device)
    cols = (offsets[1] + torch.arange(w))[:, None, None, :].to(images.device)
    channel = torch.arange(3, device=images.device)[None, :, None, None]
    batch = torch.arange(b, device=images.device)[:, None, None, None]
    return padded[batch, channel, rows, cols]
