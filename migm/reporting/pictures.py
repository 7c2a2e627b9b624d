"""Images of several methods for equal inputs and seeds, from a study's previews or folders of `generate`."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.Image import Resampling

from migm.runtime.errors import UserError
from migm.runtime.reading import files_of, read_picture, read_text
from migm.sampling.sampler import point_label

LARGEST = 512  # pixels of an image's longer side in a page
Key = tuple[int, int]  # number of the input, seed


@dataclass
class Pictures:
    """Images of methods for equal inputs: `captions` by key, `images` by label and key as data URLs."""

    captions: dict[Key, str] = field(default_factory=dict)
    images: dict[str, dict[Key, str]] = field(default_factory=dict)

    def add_preview(self, label: str, path: Path) -> None:
        """Cut a preview that `save_grid` wrote into images; they replace earlier ones of the label."""
        grid = read_picture(path, path)
        about = grid.info.get("migm")
        if about is None:  # not written by save_grid: shown whole
            self.captions[0, 0], self.images[label] = "all", {(0, 0): encoded(grid)}
            return
        layout = json.loads(str(about))
        captions, self.images[label] = layout["captions"], {}
        for number in range(layout["count"]):
            row, column = divmod(number, layout["columns"])
            left = column * (layout["width"] + layout["gap"]) + layout["gap"]
            upper = row * (layout["height"] + layout["gap"]) + layout["gap"]
            cell = grid.crop((left, upper, left + layout["width"], upper + layout["height"]))
            size = (layout["width"] // layout["scale"], layout["height"] // layout["scale"])
            self.images[label][number, 0] = encoded(cell.resize(size, Resampling.NEAREST))
            self.captions[number, 0] = f"image {number}" + (f": {captions[number]}" if captions else "")

    def add_gallery(self, folder: Path, base: str) -> None:
        """Add a folder that `migm.generate folder=` filled; images of another base raise UserError."""
        entries = files_of(folder, ".json")
        if not entries:
            raise UserError(f"images={folder} holds no JSON of an image; give a folder that migm.generate filled")
        for path in entries:
            entry = gallery_entry(path)
            if entry["base"] != base:
                raise UserError(f"images={folder}: {path.name} is of base {entry['base']}, the results are of {base}")
            steps = entry["num_steps"], entry["num_full_steps"]
            label = point_label(entry["accelerator"], *steps, entry.get("variant", ""))
            key = (entry["index"], entry["seed"])
            shown = entry["prompt"] if "prompt" in entry else f"label {entry['label']}"
            image = path.with_suffix(".png")
            self.images.setdefault(label, {})[key] = encoded(read_picture(image, f"images={image}"))
            self.captions[key] = f"{shown}, seed {entry['seed']}"

    def keys(self, labels: Sequence[str]) -> list[Key]:
        """Return the keys for which at least one of the methods has an image, ascending."""
        return sorted({key for label in labels for key in self.images.get(label, {})})


def gallery_entry(path: Path) -> dict[str, Any]:
    """Read the JSON beside an image of `migm.generate folder=`; UserError for other files."""
    needed = {"index", "seed", "base", "accelerator", "num_steps", "num_full_steps"}
    try:
        entry = json.loads(read_text(path))
        complete = needed <= set(entry) and bool({"prompt", "label"} & set(entry))
    except (ValueError, TypeError):
        complete = False
    if not complete or not path.with_suffix(".png").exists():
        raise UserError(f"{path} does not describe an image that migm.generate made")
    return entry


def encoded(image: Image.Image) -> str:
    """Return an image as data URL: PNG, or a reduced JPEG if a side is longer than LARGEST."""
    buffer = BytesIO()
    if max(image.size) <= LARGEST:
        image.save(buffer, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    smaller = image.convert("RGB")
    smaller.thumbnail((LARGEST, LARGEST), Resampling.LANCZOS)
    smaller.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
