"""Return images to Python as PIL images, together with a record of how they were made."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from migm.runtime.errors import UserError
from migm.runtime.pictures import as_picture, grid_pixels, is_grid, save_grid


class Images(list[Image.Image]):
    """PIL images of one call and their `record`, which says how they were made; a notebook shows them as one grid."""

    def __init__(self, images: list[Image.Image], record: dict[str, Any], columns: int):
        super().__init__(images)
        self.record, self.columns = record, columns

    def pixels(self) -> torch.Tensor:
        """Return the images as uint8 (n, 3, h, w)."""
        return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in self])

    def save(self, path: str | Path) -> None:
        """Write one PNG of all images, a row per label or prompt; UserError if `path` holds another program's file."""
        if Path(path).exists() and not is_grid(Path(path)):
            raise UserError(f"path={path} is there, and not a grid that migm made; choose another, or delete it")
        chosen = {key: self.record[key] for key in ("chosen",) if key in self.record}
        save_grid(self.pixels(), Path(path), self.columns, self._scale(), about=chosen)

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        as_picture(grid_pixels(self.pixels(), self.columns, self._scale())).save(buffer, "PNG")
        return buffer.getvalue()

    def _scale(self) -> int:
        return 3 if self[0].width < 100 else 1
