"""Safetensors files that are written whole or not at all, and tell when they were changed since."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from migm.runtime.errors import UserError
from migm.runtime.files import tensors_hash

SEAL = "hash"  # key of the metadata


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """`save_file`, but the same content is always the same bytes, and failures to write are the OSError they are."""
    try:
        save_file(dict(tensors), path, dict(metadata))
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    # safetensors puts its metadata in an order that differs from process to process: sorted in place.
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = {**json.loads(file.read(size)), "__metadata__": dict(sorted(metadata.items()))}
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


def refuse_foreign(path: Path, kind: str, origin: str) -> None:
    """UserError, after `origin`, where a file is there that says to be of another format than `kind`, or of none."""
    try:
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get("format")
    except FileNotFoundError:
        return
    except (SafetensorError, OSError):
        found = None
    if found != kind:
        raise UserError(f"{origin}{path} is there, and no {kind} file; choose another, or delete it")


def sealed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata with a hash of itself and of names, types, shapes and values of all tensors."""
    return {**metadata, SEAL: _hash(tensors, metadata)}


def check_seal(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], known: set[str], origin: str) -> None:
    """Refuse a file of ours that is not as it was written; `known` are the keys its metadata may have.

    A file of an earlier version has no hash and passes.
    """
    unsealed = {key: value for key, value in metadata.items() if key != SEAL}
    # A key that is none of ours may be the hash under a damaged name.
    if set(unsealed) - known or (SEAL in metadata and metadata[SEAL] != _hash(tensors, unsealed)):
        raise UserError(f"{origin} is damaged: its content is not what was written; make it again or restore it")


def _hash(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    types = [f"{name} {tensors[name].dtype}" for name in sorted(tensors)]
    return tensors_hash(tensors, *types, *(f"{key}={metadata[key]}" for key in sorted(metadata)))
