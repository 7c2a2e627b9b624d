"""Write grids of images as PNG files that record where each image lies."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from migm.runtime.files import replacing


def grid_pixels(images: Tensor, columns: int, scale: int = 2) -> Tensor:
    """Arrange uint8 images (n, 3, h, w) in one picture (3, h', w'), enlarged without smoothing.

    It is the picture of torchvision's `make_grid`, whose import takes seconds.
    """
    gap, large = _gap(images, scale), images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    n, channels, height, width = large.shape
    columns = min(columns, n)
    picture = large.new_zeros(channels, -(-n // columns) * (height + gap) + gap, columns * (width + gap) + gap)
    for i, image in enumerate(large):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        picture[:, top : top + height, left : left + width] = image
    return picture


def _gap(images: Tensor, scale: int) -> int:
    return scale if len(images) > 1 else 0  # a single image has no border


def save_grid(
    images: Tensor,
    path: Path,
    columns: int,
    scale: int = 2,
    captions: Sequence[str] = (),
    about: Mapping[str, str] | None = None,
) -> None:
    """Write uint8 images (n, 3, h, w) as one PNG, enlarged without smoothing; its text `migm` records their places.

    `about` are further texts to record in it.
    """
    gap, (height, width) = _gap(images, scale), images.shape[2:]
    layout = {"count": len(images), "columns": columns, "gap": gap, "scale": scale, "captions": list(captions)}
    texts = PngInfo()
    texts.add_text("migm", json.dumps({**layout, "height": scale * height, "width": scale * width}))
    for key, text in (about or {}).items():
        texts.add_text(key, text)
    write_image(grid_pixels(images, columns, scale), path, texts)


def write_image(image: Tensor, path: Path, about: PngInfo | None = None) -> None:
    """Replace `path` at once by a uint8 image (3, h, w) in the format of its ending; a PNG holds the texts `about`."""
    with replacing(path) as temporary:
        as_picture(image).save(temporary, pnginfo=about)


def as_picture(image: Tensor) -> Image.Image:
    """Convert a uint8 image (3, h, w) to a PIL image."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def is_grid(path: Path) -> bool:
    """Return whether a file is a picture that `save_grid` wrote."""
    try:
        with Image.open(path) as image:
            return "migm" in image.info
    except (OSError, SyntaxError, ValueError):
        return False
