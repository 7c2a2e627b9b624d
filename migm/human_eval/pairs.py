"""Blind A/B pairs for people to judge: an offline page, a CSV for crowd platforms, and the key to both.

Page and CSV reveal nothing of the methods. Sides are drawn at random, and images are written anew
under neutral names. Only `key.json` says which method is left or right, and raters do not get that file.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from migm.evaluation.results import METHOD, MODEL
from migm.reporting.pictures import gallery_entry
from migm.reporting.tables import comma_separated
from migm.runtime.errors import UserError
from migm.runtime.files import content_hash, write_atomic, write_json
from migm.runtime.markup import filled
from migm.runtime.owned import own
from migm.runtime.pictures import write_image
from migm.runtime.reading import files_of, read_text
from migm.sampling.gallery import read_image

CHOICES = ("left", "right", "tie")
SIDES = ("method", "baseline")
MADE_BY = (*METHOD, *MODEL, "initial")  # keys of an image's description that tell how the image was made


@dataclass(frozen=True)
class Pair:
    """Two images of the same prompt and seed; `left` says whose image is left, `method` or `baseline`."""

    name: str
    prompt: str
    method: Path
    baseline: Path
    left: str

    @property
    def sides(self) -> dict[str, Path]:
        images = {"method": self.method, "baseline": self.baseline}
        right = "baseline" if self.left == "method" else "method"
        return {"left": images[self.left], "right": images[right]}


def find_pairs(method: Path, baseline: Path, num_pairs: int | None, seed: int) -> list[Pair]:
    """Return all pairs of two folders written by `migm.generate folder=`, or `num_pairs`, in random order.

    Images that only one folder has, images of other prompts, seeds or sizes, and the same method twice raise UserError.
    """
    ours, theirs = _described(method, "method"), _described(baseline, "baseline")
    alone = sorted(ours.keys() ^ theirs.keys())
    if alone:
        index, number = alone[0]
        raise UserError(
            f"method={method}, baseline={baseline}: {len(alone)} images are in one folder alone, such as that of "
            f"input {index} and seed {number}; generate both with the same inputs and seeds"
        )
    made_alike = all(ours[key][1].get(what) == theirs[key][1].get(what) for key in ours for what in MADE_BY)
    if made_alike or method.samefile(baseline):
        raise UserError(
            f"method={method}, baseline={baseline}: both are images of the same method with the same settings, so "
            "there is nothing to choose between; generate one of them by another accelerator"
        )
    for key in sorted(ours):
        for what in ("prompt", "label", "run_seed", "width", "height"):
            a, b = ours[key][1].get(what), theirs[key][1].get(what)
            if a != b:
                raise UserError(f"{ours[key][0]} is of {what} {a}, {theirs[key][0]} of {b}: they are no pair")
    if num_pairs is not None and not 1 <= num_pairs <= len(ours):
        raise UserError(f"num_pairs={num_pairs} must be from 1 to {len(ours)}, or null for all")
    source = random.Random(seed)
    chosen = source.sample(sorted(ours), num_pairs or len(ours))
    width = len(str(len(chosen)))
    return [
        Pair(f"{number:0{width}d}", _shown(ours[key][1]), ours[key][0], theirs[key][0], source.choice(SIDES))
        for number, key in enumerate(chosen, 1)
    ]


def _described(folder: Path, key: str) -> dict[tuple[int, int], tuple[Path, dict[str, Any]]]:
    """Map (number of the input, seed) to the image's path and its description."""
    entries = {path.with_suffix(".png"): gallery_entry(path) for path in files_of(folder, ".json")}
    if not entries:
        raise UserError(f"{key}={folder} holds no images with JSON; give a folder that migm.generate folder= filled")
    return {(entry["index"], entry["seed"]): (path, entry) for path, entry in entries.items()}


def _shown(entry: Mapping[str, Any]) -> str:
    return entry["prompt"] if "prompt" in entry else f"label {entry['label']}"


def export(pairs: Sequence[Pair], folder: Path, question: str, url: str) -> str:
    """Write `page/`, `crowd.csv` and `key.json` into `folder` -> the study's id, which votes carry.

    `url` stands before the images' names in the CSV. A folder that holds the key of other pairs is
    refused: a new key would make their votes unreadable.
    """
    key = {pair.name: {"left": pair.left, **{side: str(getattr(pair, side)) for side in SIDES}} for pair in pairs}
    study = content_hash(json.dumps([key, question], sort_keys=True))
    path = folder / "key.json"
    if path.exists() and read_key(path)["study"] != study:
        raise UserError(f"folder={folder} holds the key of other pairs; choose another folder, or delete this one")
    own(folder, "humaneval", "folder", known=path.exists())
    images = folder / "page" / "images"
    rows: list[list[str]] = []
    for pair in pairs:
        for side, source in pair.sides.items():
            write_image(read_image(source, "image"), images / f"{pair.name}_{side}.png")  # pixels, no texts
        names = [f"{url}{pair.name}_{side}.png" for side in ("left", "right")]
        rows.append([study, pair.name, pair.prompt, question, *names])
    headings = ["study", "pair", "prompt", "question", "left_image", "right_image"]
    write_atomic(folder / "crowd.csv", comma_separated(headings, rows))
    write_atomic(folder / "page" / "index.html", _page(study, question, pairs))
    write_json(path, {"study": study, "question": question, "pairs": key})
    return study


def _page(study: str, question: str, pairs: Sequence[Pair]) -> str:
    shown = {"study": study, "pairs": [{"name": pair.name, "prompt": pair.prompt} for pair in pairs]}
    document = (Path(__file__).parent / "vote.html").read_text(encoding="utf-8")
    return filled(document, {"question": question}, shown)


def read_key(path: Path) -> dict[str, Any]:
    """Read `key.json` of an export; FileNotFoundError or UserError without a valid key."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; export pairs first, into the same folder")
    try:
        key = json.loads(read_text(path))
        _ = key["study"], key["pairs"].keys()
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is no key of an export") from error
    return key
