"""Provide the labels or prompts of images, as a function of the image's number."""

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from migm.bases.base import Base, Inputs
from migm.runtime.distributed import first_console
from migm.runtime.errors import UserError
from migm.runtime.files import content_hash
from migm.runtime.jsonl import numbered_lines, parsed
from migm.runtime.kinds import Count
from migm.runtime.reading import files_of, read_text


class InputSource(Protocol):
    def __call__(self, images: Tensor) -> Inputs:
        """Return the inputs of the images numbered `images` (b,)."""
        ...

    def fingerprint(self) -> str:
        """Return a text that identifies the source in manifests and results."""
        ...


class Classes:
    """Labels 0...num_classes-1 in turn."""

    def __init__(self, num_classes: Count):
        self.num_classes = num_classes

    def __call__(self, images: Tensor) -> Tensor:
        return images % self.num_classes

    def fingerprint(self) -> str:
        return f"{self.num_classes} classes"


class Prompts:
    """The prompts of a file or folder in turn, or only those from `first` to before `last`."""

    def __init__(self, file: str | Path, first: int = 0, last: int | None = None):
        every = read_prompts(Path(file))
        if not 0 <= first < (len(every) if last is None else last) <= len(every):
            asked = f"has no prompts from inputs.first={first} to inputs.last={last}"
            raise UserError(f"inputs.file={file} {asked}: it holds {len(every)}, numbered from 0")
        self.prompts = every[first:last]

    def __call__(self, images: Tensor) -> list[str]:
        return [self.prompts[number % len(self.prompts)] for number in images.tolist()]

    def fingerprint(self) -> str:
        digest = content_hash("\n".join(self.prompts))
        return f"{len(self.prompts)} prompts {digest}"


def review(base: Base, inputs: Inputs, key: str = "") -> None:
    """Refuse inputs that `base` cannot draw, and print in one line what it ignores of the others."""
    where = f"{key}: " if key else ""
    try:
        left_out = base.review(inputs.unique() if isinstance(inputs, Tensor) else list(dict.fromkeys(inputs)))
    except UserError as error:
        raise UserError(f"{where}{error}") from None
    if left_out:
        first_console().print(f"{where}{left_out}", style="yellow")


def read_prompts(path: Path, key: str = "inputs.file") -> list[str]:
    """Read prompts from a `.txt` file (one a line), or a `.jsonl` or `.json` file (strings, or objects with `prompt`).

    In a folder each `.txt` file holds one prompt, as in ELLA's DPG-Bench; they are read in the order of their names.
    """
    if path.is_dir():
        return [_prompt(" ".join(read_text(file).split()), str(file)) for file in files_of(path, ".txt")]
    if not path.is_file():
        raise FileNotFoundError(f"{key}={path}: no such file or folder; `python -m migm.needs` says where to get it")
    kind = path.suffix.lower()
    if kind not in (".txt", ".json", ".jsonl"):
        raise UserError(f"{key}={path} should end in .txt, .jsonl or .json")
    text = read_text(path, key)
    if kind == ".txt":
        return [line.strip() for line in text.split("\n") if line.strip()]
    if kind == ".jsonl":
        lines = [(f"{path}, line {n}", line) for n, line, _ in numbered_lines(text) if line.strip()]
        return [_prompt(_parsed(line, origin), origin) for origin, line in lines]
    content = _parsed(text, str(path))
    items = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(items, list):
        raise UserError(f"{key}={path} should hold a list or an object of prompts")
    return [_prompt(item, f"{path}, entry {n}") for n, item in enumerate(items, 1)]


def _parsed(text: str, origin: str) -> Any:
    try:
        return parsed(text)
    except ValueError as error:
        raise UserError(f"{origin} is not valid JSON ({error})") from error


def _prompt(item: Any, origin: str) -> str:
    prompt = item.get("prompt") if isinstance(item, dict) else item
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{origin}: neither a prompt nor an object with a prompt")
    return prompt.strip()


def captioned(inputs: Inputs) -> list[str]:
    """Return the label or prompt of each image of a batch as text."""
    return [f"label {label}" for label in inputs.tolist()] if isinstance(inputs, Tensor) else list(inputs)
