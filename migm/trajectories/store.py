"""Store trajectories on disk in the format `migm-traj/1`: safetensors shards and a manifest that lists them.

A shard is written under a temporary name, synced, renamed, and listed last, so that a kill at any moment loses at most
the shard being written. The first line of the manifest states the facts that all shards share: the schema, and the
entries of `migm.trajectories.collect.header`, such as base fingerprint, storage mode, sampling, seed and dtype.
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from migm.config.earlier import sampling_identity
from migm.runtime.errors import UserError
from migm.runtime.files import file_hash, write_tensors
from migm.runtime.jsonl import append_line, read_lines
from migm.runtime.owned import only, refuse_foreign
from migm.trajectories.paging import read_singly, read_start
from migm.trajectories.record import Trajectories

if TYPE_CHECKING:
    from migm.trajectories.remote import Remote

SCHEMA = "migm-traj/1"
MANIFEST = "manifest.jsonl"
NAMES = r"(manifest\.jsonl|\d{6,}\.(safetensors|json))(\.tmp)?"  # of all files in a store; a manifest marks a store
# By their names in safetensors
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
DTYPES |= {"I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64}
ManifestLine = dict[str, Any]  # of the manifest


class Store:
    """A folder of shards. A new store gets `header`; an old one is refused unless it matches `header`.

    With `remote`, the folder is the one at the URL of `remote`, and the store is read-only.
    """

    def __init__(self, folder: str | Path, header: ManifestLine | None = None, remote: "Remote | None" = None):
        self.folder, self.name, self.remote = Path(folder), str(folder), remote
        self.manifest = self.folder / MANIFEST
        local_lines = read_lines(self.manifest) if not remote and self.manifest.exists() else []
        lines = remote.place.lines(MANIFEST) if remote else local_lines
        if lines:
            self._check_lines(lines, header)
            self.header, *self.shards = lines
        elif header is None:
            raise FileNotFoundError(
                f"data.folder={folder}: no {MANIFEST} here; collect trajectories first (migm.collect)"
            )
        else:
            refuse_foreign(self.folder, "trajectories", "data.folder", only(self.folder, NAMES))
            self.header, self.shards = {"schema": SCHEMA, **header}, []

    def __len__(self) -> int:
        """Return the number of images stored."""
        return sum(shard["count"] for shard in self.shards)

    def append(self, trajectories: Trajectories) -> None:
        """Write the next shard and list it."""
        self.begin()
        self.add(self.write(len(self.shards), trajectories))

    def begin(self) -> None:
        """Write the manifest's first line if it is missing; UserError if the store is read-only."""
        if self.remote:
            raise UserError(f"data.folder={self.name} is read only; collect into a folder and publish it (publish_to)")
        if not self.shards and not (self.manifest.exists() and read_lines(self.manifest)):
            append_line(self.manifest, self.header)

    def write(self, number: int, trajectories: Trajectories) -> ManifestLine:
        """Write the complete shard `number` and return its manifest entry, which is not listed yet."""
        path = self.folder / f"{number:06d}.safetensors"
        write_tensors(trajectories.tensors(), path, {"schema": SCHEMA, "base": str(self.header["base"])})
        count, size = len(trajectories.images), path.stat().st_size
        return {"file": path.name, "count": count, "bytes": size, "sha256": file_hash(path)}

    def add(self, entry: ManifestLine) -> None:
        """List a written shard, the next in order, in the manifest."""
        append_line(self.manifest, entry)
        self.shards.append(entry)

    def open(self, index: int) -> dict[str, Tensor]:
        """Return the tensors of one shard, memory-mapped: only rows that are used are read from disk."""
        shard = self.shards[index]
        return self.remote.open(shard, _read) if self.remote else _read(self.folder / shard["file"])

    def verify(self, contents: bool = True) -> None:
        """Check all shards; UserError that names the file of a missing or damaged one.

        A shard has to have the listed size and, in a folder, the listed number of images; with `contents`, the listed
        SHA-256 as well. For a remote store, see `Remote.verify`.
        """
        if self.remote:
            self.remote.verify(self.shards, contents)
            return
        for shard in self.shards:
            self.check(shard, contents)

    def check(self, shard: ManifestLine, contents: bool = True) -> None:
        """Check one shard of a folder in the same way as `verify`."""
        path = self.folder / shard["file"]
        size = path.stat().st_size if path.exists() else 0
        if size != shard["bytes"]:
            state = f"has {size} of {shard['bytes']} bytes" if path.exists() else "is missing"
            raise self._damaged(path, state)
        if contents and file_hash(path) != shard["sha256"]:
            raise self._damaged(path, "is damaged (SHA-256 differs)")
        if (count := self._images(path)) != shard["count"]:
            raise self._damaged(path, f"holds {count} images, {self.manifest} says {shard['count']}")

    def _images(self, path: Path) -> int:
        """Return the number of images in a shard, from its header alone."""
        try:
            with safe_open(path, "pt") as file:
                return file.get_slice("images").get_shape()[0]
        except (OSError, SafetensorError) as error:
            raise self._damaged(path, f"cannot be read ({error})") from error

    def _damaged(self, shard: Path, how: str) -> UserError:
        return UserError(f"data.folder: shard {shard} {how}; delete {self.folder} and collect again")

    def _check_lines(self, lines: list[ManifestLine], wanted: ManifestLine | None) -> None:
        header, *shards = lines
        if header.get("schema") != SCHEMA:
            raise UserError(f"{self.name}/{MANIFEST} has schema {header.get('schema')}, this version reads {SCHEMA}")
        for number, shard in enumerate(shards):
            if not _describes_shard(shard, number):
                raise UserError(f"{self.name}/{MANIFEST}, line {number + 2} describes no shard of {SCHEMA}")
        for key, value in (wanted or {}).items():
            stored = header.get(key)
            if key == "sampling" and isinstance(stored, dict):  # earlier versions stored the config
                stored = sampling_identity(stored)
            if stored != json.loads(json.dumps(value)):
                raise UserError(
                    f"data.folder={self.name} was collected with {key}={stored}, but this run has {key}={value}; "
                    "choose another data.folder or delete this one"
                )


def _read(path: Path) -> dict[str, Tensor]:
    try:
        read_start(path)
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            kinds = {name: (DTYPES[part.get_dtype()], part.get_shape()) for name, part in slices.items()}
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"data.folder: shard {path} cannot be read ({error}); delete it and collect again") from error
    # get_tensor would touch every tensor and each time load the disk's read-ahead, megabytes on some disks.
    data = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
    read_singly(data)
    sizes = [dtype.itemsize * math.prod(shape) for dtype, shape in kinds.values()]
    parts = data[-sum(sizes) :].split(sizes)  # the tensors fill the file after its header
    named = zip(parts, kinds.items(), strict=True)
    return {name: part.view(dtype).view(shape) for part, (name, (dtype, shape)) in named}


def _describes_shard(line: ManifestLine, number: int) -> bool:
    """Return whether a line of the manifest describes shard `number`, with values of the right types."""
    counts = [line.get("count"), line.get("bytes")]
    whole = all(type(count) is int and count > 0 for count in counts)
    return whole and line.get("file") == f"{number:06d}.safetensors" and isinstance(line.get("sha256"), str)
