"""Grids of images as PNG files that say where each image lies."""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torchvision.utils import make_grid

from migm.runtime.files import replacing


def save_grid(images: Tensor, path: Path, columns: int, scale: int = 2, captions: Sequence[str] = ()) -> None:
    """Write uint8 images (n, 3, h, w) as one PNG, enlarged without smoothing; its text `migm` says where they are."""
    large = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    gap = scale if len(images) > 1 else 0  # make_grid puts none around a single image
    layout = {"count": len(images), "columns": columns, "gap": gap, "scale": scale, "captions": list(captions)}
    about = PngInfo()
    about.add_text("migm", json.dumps({**layout, "height": large.shape[2], "width": large.shape[3]}))
    grid = make_grid(large, nrow=columns, padding=gap).permute(1, 2, 0)
    with replacing(path) as temporary:
        Image.fromarray(grid.cpu().numpy()).save(temporary, pnginfo=about)
