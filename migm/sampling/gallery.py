"""Write generated images as one grid, and as single files with a JSON that records how each was made."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from migm.runtime.errors import UserError
from migm.runtime.files import replacing, write_atomic
from migm.runtime.owned import only, own, refuse_foreign
from migm.runtime.pictures import save_grid
from migm.runtime.reading import files_of, read_picture, read_text

NAMES = r"\d+_-?\d+_.*\.(png|json)(\.tmp)?"  # the names of all files in a gallery's folder
GRID_TOKENS = 2**18  # limit of all images in a grid: 64 of Lumina-DiMOO at 1024 px, 256 of MaskGIT at 512 px


class Grid:
    """One picture with a row per label or prompt and a column per seed, as many as fit.

    `photo` (3, h, w) stands before every row.
    """

    def __init__(self, rows: int, seeds: Sequence[int], num_tokens: int, photo: Tensor | None = None):
        limit = max(1, GRID_TOKENS // num_tokens)
        self.seeds = seeds[:limit]
        self.rows = min(rows, limit // len(self.seeds))
        self.whole = self.rows == rows and len(self.seeds) == len(seeds)
        self.photo = photo
        self.images: dict[tuple[int, int], Tensor] = {}

    def holds(self, row: int, seed: int) -> bool:
        return row < self.rows and seed in self.seeds

    def add(self, row: int, seed: int, image: Tensor) -> None:
        self.images[row, seed] = image

    def save(self, path: Path, about: Mapping[str, str] | None = None) -> tuple[int, int]:
        """Write the PNG, which also holds the texts `about`, and return the width and height of one image."""
        first = [] if self.photo is None else [self.photo]
        lines = [[*first, *(self.images[row, seed] for seed in self.seeds)] for row in range(self.rows)]
        images = torch.stack([image for line in lines for image in line])
        height, width = images.shape[-2:]
        save_grid(images, path, len(lines[0]), scale=3 if width < 100 else 1, about=about)
        return width, height


class Gallery:
    """A folder of images of `inputs`, named `<number of the input>_<seed>_<first words>`.

    All images of a folder share `settings`. A folder is refused if it holds an image with other settings, or of another
    input under the same number: nothing is mixed or overwritten. The JSON is written after its PNG, so that an image
    with a JSON is complete. `done` maps (index, seed) to these PNGs.
    """

    def __init__(self, folder: Path, inputs: Sequence[int] | Sequence[str], settings: Mapping[str, Any]):
        self.folder, self.inputs = folder, inputs
        self.settings = json.loads(json.dumps(settings))  # in the form that reading a JSON gives
        self.done: dict[tuple[int, int], Path] = {}
        for path in files_of(folder, ".json"):
            entry, image = self._checked(path), path.with_suffix(".png")
            if image.exists():
                self.done[entry["index"], entry["seed"]] = image
        self.began = bool(self.done) or only(folder, NAMES)
        refuse_foreign(folder, "images", "folder", self.began)

    def add(self, index: int, seed: int, image: Tensor, facts: Mapping[str, Any]) -> None:
        """Write image (3, h, w) of input `index` and `seed`; `facts` concern this image alone."""
        shown = self.inputs[index]
        path = self.folder / f"{index:05d}_{seed}_{slug(shown)}.png"
        own(self.folder, "images", "folder", self.began)
        with replacing(path) as temporary:
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(temporary)
        height, width = image.shape[-2:]
        entry = {
            **_named(shown),
            "index": index,
            "seed": seed,
            **self.settings,
            "width": width,
            "height": height,
            **facts,
            "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        }
        write_atomic(path.with_suffix(".json"), json.dumps(entry, indent=2, ensure_ascii=False) + "\n")
        self.done[index, seed] = path

    def _checked(self, path: Path) -> dict[str, Any]:
        other = f"folder={self.folder}: {path.name}"
        try:
            entry = json.loads(read_text(path))
            index, _ = int(entry["index"]), int(entry["seed"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{other} does not describe an image of this command; choose another folder") from error
        same = {**self.settings, **(_named(self.inputs[index]) if index < len(self.inputs) else {})}
        differing = [key for key in same if key not in entry or entry[key] != same[key]]
        if differing:
            raise UserError(f"{other} is of another {', '.join(differing)}; choose another folder, or delete this one")
        return entry


def _named(shown: int | str) -> dict[str, int | str]:
    return {"prompt" if isinstance(shown, str) else "label": shown}


def refuse_unknown_format(output: str) -> None:
    """Raise a UserError unless the ending of a file's name is an image format that can be written."""
    ending = Path(output).suffix
    try:
        Image.new("RGB", (1, 1)).save(BytesIO(), Image.registered_extensions()[ending.lower()])
    except (KeyError, OSError, ValueError) as error:
        fault = f"{ending} is no format that images are written in" if ending else "no ending says the format"
        raise UserError(f"output={output}: {fault}; name it such as {output.removesuffix(ending)}.png") from error


def slug(shown: int | str) -> str:
    """Return a label, or the first words of a prompt, as part of a file's name."""
    return "_".join(re.findall(r"\w+", str(shown).lower())[:6])[:40]


def read_image(path: Path, key: str, mode: str = "RGB") -> Tensor:
    """Read an image file as uint8 (c, h, w), c = 3, or 1 in mode `L`; an unreadable file is refused by `key`."""
    if not path.is_file():
        raise FileNotFoundError(f"{key}={path}: no such file")
    pixels = np.array(read_picture(path, f"{key}={path}", mode))
    return torch.from_numpy(pixels).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)
