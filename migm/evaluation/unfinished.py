"""What a process has measured of a point that is not done, kept so that a stop loses little of it."""

import contextlib
import hashlib
import io
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from migm.metrics.metric import ImageMetric
from migm.runtime.files import replacing

EVERY = 60.0  # seconds between two saves, or more:
COST = 0.05  # of the time is the most they take
STALE = 7 * 86400.0  # seconds without a save, after which nobody is expected to go on with a file
DIGEST = hashlib.sha256().digest_size


@dataclass
class Part:
    """A process's share of a point: the metrics' states after batches up to `next`, and the first images."""

    next: int
    states: list[dict[str, Any]] = field(default_factory=list)
    preview: list[Tensor] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Unfinished:
    """A file of `folder` for what a rank has under way: SHA-256 of what follows, then a `Part` and its key.

    It is named by that key too: other commands may measure other points of the same study meanwhile.
    """

    def __init__(self, folder: Path, rank: int):
        self.folder, self.rank, self.due = folder, rank, time.monotonic() + EVERY

    def path(self, key: str) -> Path:
        return self.folder / f"unfinished-{hashlib.sha256(key.encode()).hexdigest()[:8]}-{self.rank}.pt"

    def load(self, key: str) -> Part | None:
        """What was kept of `key`; nothing where that is damaged."""
        if not self.path(key).exists():
            return None
        content = self.path(key).read_bytes()
        if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
            return None
        kept = torch.load(io.BytesIO(content[DIGEST:]), weights_only=True)
        return Part(**kept["part"]) if kept["key"] == key else None

    def save_when_due(self, key: str, part: Part, metrics: Sequence[ImageMetric]) -> None:
        """Replace what is kept, once in a while, by `part` and the metrics' states."""
        start = time.monotonic()
        if start < self.due:
            return
        part.states = [metric.state() for metric in metrics]
        buffer = io.BytesIO()
        torch.save({"key": key, "part": asdict(part)}, buffer)
        content = buffer.getvalue()
        with replacing(self.path(key)) as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
        end = time.monotonic()
        self.due = end + max(EVERY, (end - start) / COST)

    def clear(self, key: str) -> None:
        """Forget a point that is done."""
        self.path(key).unlink(missing_ok=True)
        self.due = time.monotonic() + EVERY

    def clear_stale(self) -> None:
        """Forget what nobody went on with: the rest of another question, or another number of processes."""
        for left in self.folder.glob("unfinished-*.pt"):
            if not re.fullmatch(r"unfinished-[0-9a-f]{8}-\d+\.pt", left.name):
                continue  # somebody else's
            with contextlib.suppress(FileNotFoundError):  # its own command may be done with it meanwhile
                if time.time() - left.stat().st_mtime > STALE:
                    left.unlink()
