"""Read real images from a folder or a zip, as the reference of metrics."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from migm.runtime.errors import UserError
from migm.runtime.reading import files_of, read_picture, unasked

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class Photos(Dataset):
    """Images of a folder or a zip, ordered by path, as uint8 (3, h, w).

    With `size` the shorter side is resized to `size` pixels (PIL's bilinear, common for ImageNet), and the
    middle square is cut out.
    """

    def __init__(self, source: str | Path, size: int | None = None):
        self.source, self.archive = Path(source), None
        if not self.source.exists():
            raise FileNotFoundError(f"images={source}: no such folder or zip")
        if self.source.is_dir():
            files = files_of(self.source, *SUFFIXES, deep=True)
            self.names = sorted(path.relative_to(self.source).as_posix() for path in files)
        else:
            with zipfile.ZipFile(self.source) as archive:
                names = archive.namelist()
            self.names = sorted(name for name in names if name.lower().endswith(SUFFIXES) and not unasked(name))
        if not self.names:
            raise UserError(f"images={source} has no file ending in {', '.join(SUFFIXES)}")
        self.crop = v2.Compose([v2.Resize(size), v2.CenterCrop(size)]) if size else v2.Identity()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        name = self.names[index]
        image = read_picture(io.BytesIO(self._bytes(name)), f"images={self.source}: {name}")
        return v2.functional.pil_to_tensor(self.crop(image))

    def _bytes(self, name: str) -> bytes:
        if self.source.is_dir():
            return (self.source / name).read_bytes()
        if self.archive is None:  # each worker process opens its own handle
            self.archive = zipfile.ZipFile(self.source)
        return self.archive.read(name)

    def batches(self, batch_size: int, num_workers: int = 0) -> Iterator[Tensor]:
        """Yield batches uint8 (b, 3, h, w); images of different sizes in a batch raise UserError."""
        yield from DataLoader(self, batch_size, num_workers=num_workers, collate_fn=self._stacked)

    def _stacked(self, images: list[Tensor]) -> Tensor:
        sizes = {tuple(image.shape[1:]) for image in images}
        if len(sizes) > 1:
            raise UserError(f"images={self.source} has images of {len(sizes)} sizes; give size=<pixels>, such as 512")
        return torch.stack(images)
