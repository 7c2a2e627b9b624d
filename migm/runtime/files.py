"""Write files whole or not at all, and hash with SHA-256; all other modules use these functions.

No other module renames, syncs or hashes files itself; a library that must write a file does so within `replacing`. The
exception is `jsonl`, which appends.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from migm.runtime.errors import UserError

SEAL = "hash"  # the metadata key of the hash


def is_url(folder: str | Path) -> bool:
    """Return whether a folder is reached through fsspec; a plain path is read directly."""
    return "://" in str(folder)


@contextmanager
def replacing(path: Path, *previous: Path) -> Iterator[Path]:
    """Yield a file to write; when the block ends it is synced and replaces `path` at once, or is removed on failure.

    The file lies in a temporary folder beside `path`. Whatever a killed command left there, including files that a
    library named, is removed by the next try. If something else has the name of that folder, it stays and another name
    is taken. The old file at `path` moves to the first of `previous`, that file to the second, and so on.
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
        for newer, older in reversed(list(itertools.pairwise([path, *previous]))):
            if newer.exists():
                os.replace(newer, older)
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path, name: str) -> bool:
    """Return whether `folder` is absent, or holds only what a killed write of `name` and its libraries leave."""
    if folder.is_dir() and not folder.is_symlink():
        library = r"\.tmp.*|" + re.escape(name) + r"\.\w+\.partial"  # the temporary names of safetensors and torch.hub
        return all(path.name == name or re.fullmatch(library, path.name) for path in folder.iterdir())
    return not os.path.lexists(folder)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` at once by bytes, or by text in UTF-8; a kill leaves either the old file or the new one."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace `path` at once by an indented JSON object."""
    write_atomic(path, json.dumps(content, indent=1) + "\n")


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Replace `path` at once by a safetensors file; the same content always gives the same bytes.

    Raises OSError if writing fails, in place of safetensors' own error.
    """
    with replacing(path) as temporary:
        try:
            save_file(dict(tensors), temporary, dict(metadata) if metadata else None)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        if metadata:
            _sort_metadata(temporary, metadata)


def _sort_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Sort the file's metadata in place, since safetensors writes it in an order that differs between processes."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = {**json.loads(file.read(size)), "__metadata__": dict(sorted(metadata.items()))}
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


def write_sealed(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors with a hash of the metadata and of their names, types, shapes and values, for `check_seal`."""
    write_tensors(tensors, path, {**metadata, SEAL: _seal(tensors, metadata)})


def check_seal(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], keys: set[str], origin: str) -> None:
    """Refuse a file's content that differs from what `write_sealed` wrote; `keys` are the allowed metadata keys.

    A file of an earlier version has no hash and passes.
    """
    unsealed = {key: value for key, value in metadata.items() if key != SEAL}
    # A foreign key may be that of the hash with damaged letters.
    if set(unsealed) - keys or (SEAL in metadata and metadata[SEAL] != _seal(tensors, unsealed)):
        raise UserError(f"{origin} is damaged: its content is not what was written; make it again or restore it")


def _seal(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    types = [f"{name} {tensors[name].dtype}" for name in sorted(tensors)]
    return tensors_hash(tensors, *types, *(f"{key}={metadata[key]}" for key in sorted(metadata)))


def refuse_other_format(path: Path, kind: str, origin: str) -> None:
    """Raise a UserError that begins with `origin` if `path` exists and its format is not `kind`."""
    try:
        with safe_open(path, "pt") as file:
            is_ours = (file.metadata() or {}).get("format") == kind
    except FileNotFoundError:
        return
    except (SafetensorError, OSError):
        is_ours = False
    if not is_ours:
        raise UserError(f"{origin}{path} is there, and no {kind} file; choose another, or delete it")


def content_hash(content: str | bytes | memoryview, digits: int = 12) -> str:
    """Return the first hexadecimal digits, at most 64, of the SHA-256 of bytes or of text in UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:digits]


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_hash(tensors: Mapping[str, Tensor], *strings: str) -> str:
    """Return twelve hexadecimal digits of the SHA-256 of names, shapes, values and further strings."""
    digest = hashlib.sha256("|".join(strings).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        # Flattened, since in some memory formats the last dimension does not have stride 1.
        data = tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.ndim else repr(tensor.item()).encode()
        digest.update(data)
    return digest.hexdigest()[:12]
