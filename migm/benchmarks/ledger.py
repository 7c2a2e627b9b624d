"""The rows of a benchmark: appended to a file as they are measured, found there again by their identity."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from migm.benchmarks.variants import Variant
from migm.runtime.files import content_hash
from migm.runtime.jsonl import append_line, read_lines
from migm.runtime.provenance import environment

Row = dict[str, Any]


@dataclass
class Ledger:
    """Rows of one device; those of others in the same file are passed over."""

    path: Path
    device: torch.device
    resume: bool
    name: str
    rows: list[Row] = field(default_factory=list)  # of this command, found or measured

    def __post_init__(self) -> None:
        self.environment: dict[str, str] = {**environment(self.device), "device_type": self.device.type}
        self.kept = {row["identity"]: row for row in self.latest()} if self.resume else {}

    def about(self, variant: Variant, kind: str, part: str, batch: int, wanted: int) -> Row:
        """Return what tells a row apart, and its identity: device, versions and every setting that it depends on."""
        about = {"kind": kind, "part": part, "variant": variant.name, "batch_size": batch, "wanted_batch_size": wanted}
        about |= {"name": self.name, "base": variant.base.fingerprint()}
        text = json.dumps([about, variant.settings, self.environment], sort_keys=True)
        return {**about, "identity": content_hash(text)}

    def lacks(self, about: Row) -> bool:
        """Return whether a row has to be measured; one that was found counts as a row of this command."""
        row = self.kept.get(about["identity"])
        if row is not None and row not in self.rows:
            self.rows.append(row)
        return row is None

    def latest(self) -> list[Row]:
        """Return the rows of the file that this version measured on this device under this name, the latest of each."""
        like = {**self.environment, "name": self.name}
        rows = read_lines(self.path) if self.path.exists() else []
        found = {row["identity"]: row for row in rows if "identity" in row and like.items() <= row.items()}
        return list(found.values())

    def add(self, about: Row, measured: Row) -> None:
        """Keep a row and append it to the file."""
        row = {**about, **measured, **self.environment, "time": time.strftime("%Y-%m-%dT%H:%M:%S")}
        self.rows.append(row)
        append_line(self.path, row)
