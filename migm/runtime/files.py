"""Files written whole or not at all, and hashes of what is in them."""

import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor


def tensors_hash(tensors: Mapping[str, Tensor], *more: str) -> str:
    """Twelve hexadecimal digits over names, values and further strings."""
    digest = hashlib.sha256("|".join(more).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        # Flat, since in other memory formats the last dimension need not have stride 1.
        data = tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.ndim else repr(tensor.item()).encode()
        digest.update(data)
    return digest.hexdigest()[:12]


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_url(folder: str | Path) -> bool:
    """Whether a folder is reached through fsspec; a plain path is read where it is."""
    return "://" in str(folder)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write that takes the place of `path` at once, synced, when the block ends, and is gone if it fails.

    It lies in a folder of its own beside `path`: what a kill leaves there, also under names that a
    library chose, the next try removes. What somebody else has under that folder's name stays, and another is taken.
    """
    names = (f"{path.name}{f'.{number}' if number else ''}.tmp" for number in itertools.count())
    folder = next(folder for folder in map(path.with_name, names) if _is_left(folder, path.name))
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    try:
        yield folder / path.name
        with (folder / path.name).open("rb") as file:
            os.fsync(file.fileno())
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path, name: str) -> bool:
    """Whether there is nothing, or what a kill left of a file called `name`: beside it only names of safetensors'."""
    if folder.is_dir() and not folder.is_symlink():
        return all(path.name == name or path.name.startswith(".tmp") for path in folder.iterdir())
    return not os.path.lexists(folder)


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` at once, so that a kill leaves either the old file or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
