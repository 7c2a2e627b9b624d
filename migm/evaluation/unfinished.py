"""Save the progress on a point that is not done, so that a stop loses little work."""

import contextlib
import io
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from migm.metrics.metric import QualityMetric
from migm.runtime.files import content_hash, write_atomic

EVERY = 60.0  # least seconds between two saves
COST = 0.05  # greatest share of the time that saves may take; slow saves are made less often
STALE = 7 * 86400.0  # seconds without a save after which a file counts as abandoned
DIGEST = 32  # length of a SHA-256 in bytes


@dataclass
class Part:
    """One process's share of a point: the metrics' states before batch `next`, and the first images."""

    next: int
    states: list[dict[str, Any]] = field(default_factory=list)
    preview: list[Tensor] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Unfinished:
    """A file in `folder` for the work in progress of a rank: a SHA-256, then the `Part` and its key.

    The key is part of the file's name, since other commands may measure other points of the study meanwhile.
    """

    def __init__(self, folder: Path, rank: int):
        self.folder, self.rank, self.due = folder, rank, time.monotonic() + EVERY

    def path(self, key: str) -> Path:
        return self.folder / f"unfinished-{content_hash(key, digits=8)}-{self.rank}.pt"

    def load(self, key: str) -> Part | None:
        """Return the saved part of `key`; None where there is none or it is damaged."""
        if not self.path(key).exists():
            return None
        content = self.path(key).read_bytes()
        if _digest(content[DIGEST:]) != content[:DIGEST]:
            return None
        kept = torch.load(io.BytesIO(content[DIGEST:]), weights_only=True)
        return Part(**kept["part"]) if kept["key"] == key else None

    def save_when_due(self, key: str, part: Part, metrics: Sequence[QualityMetric]) -> None:
        """Save `part` and the metrics' states, if the last save is long enough ago."""
        start = time.monotonic()
        if start < self.due:
            return
        part.states = [metric.state() for metric in metrics]
        buffer = io.BytesIO()
        torch.save({"key": key, "part": asdict(part)}, buffer)
        content = buffer.getvalue()
        write_atomic(self.path(key), _digest(content) + content)
        end = time.monotonic()
        self.due = end + max(EVERY, (end - start) / COST)

    def clear(self, key: str) -> None:
        """Delete the file of a point that is done."""
        self.path(key).unlink(missing_ok=True)
        self.due = time.monotonic() + EVERY

    def clear_stale(self) -> None:
        """Delete abandoned files, such as those of another question or of another number of processes."""
        for path in self.folder.glob("unfinished-*.pt"):
            if not re.fullmatch(r"unfinished-[0-9a-f]{8}-\d+\.pt", path.name):
                continue  # not written by this class
            with contextlib.suppress(FileNotFoundError):  # its own command may delete it meanwhile
                if time.time() - path.stat().st_mtime > STALE:
                    path.unlink()


def _digest(content: bytes) -> bytes:
    return bytes.fromhex(content_hash(content, digits=64))
