"""`results.jsonl`: one JSON line per measured value, appended and synced, never rewritten."""

import re
from pathlib import Path
from typing import Any

from migm.jsonl import append_line, read_lines
from migm.runtime import UserError

# What makes two records the same measurement; the rest describes how it came about.
IDENTITY = (
    "metric",
    "accelerator",
    "settings",
    "num_steps",
    "num_full_steps",
    "seed_set",
    "base",
    "decoder",
    "predictor",
    "sampling",
    "inputs",
    "reference",
)


# What a line must hold to be a record at all.
REQUIRED = {"metric", "value", "accelerator", "num_steps", "num_full_steps", "base", "sampling"}


class Results:
    """The records of a file, and a place to append more; a line cut off by a kill counts as not measured."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.records = read(self.path) if self.path.exists() else []
        self._known = {identity(record) for record in self.records}

    def has(self, record: dict[str, Any]) -> bool:
        """Whether a record of the same measurement is there, whatever its value."""
        return identity(record) in self._known

    def append(self, record: dict[str, Any]) -> None:
        """Write one record to the file's end."""
        append_line(self.path, record)
        self.records.append(record)
        self._known.add(identity(record))


def identity(record: dict[str, Any]) -> tuple[Any, ...]:
    """What `record` measures."""
    return tuple(record.get(key) for key in IDENTITY)


def read(path: Path) -> list[dict[str, Any]]:
    """All records of a file; a line that is none is refused by number."""
    if not path.exists():
        raise FileNotFoundError(f"results={path}: no such file; run migm.evaluate first")
    records = read_lines(path)
    for number, record in enumerate(records, 1):
        missing = REQUIRED - set(record)
        if missing:
            raise UserError(f"{path}, line {number} is no result record: it lacks {min(missing)}")
    return records


def point_label(accelerator: str, num_steps: int, num_full_steps: int, variant: str = "") -> str:
    """How a point is called everywhere: `vanilla 16`, `shortcut 16,4`, `taylorseer 16,6 interval=4`, `teacache 16`.

    `num_full_steps` 0 is one that is decided while sampling.
    """
    steps = f"{num_steps}" if num_full_steps in (0, num_steps) else f"{num_steps},{num_full_steps}"
    return f"{accelerator} {steps} {variant}".rstrip()


def file_name(label: str) -> str:
    """The label of a point without what a file system might not like."""
    return re.sub(r"[^\w,=.+-]+", "_", label)
