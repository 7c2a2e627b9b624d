"""`results.jsonl`: one JSON line per measured value, appended and synced, never rewritten."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from migm.runtime.errors import UserError
from migm.runtime.jsonl import append_lines, read_lines

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

TEXTS = {"metric", "accelerator", "variant", "base", "sampling", "time", "unit", "counter"}
NUMBERS = {"value", "num_steps", "num_full_steps", "n", "seed_set", "mean_full_steps", "seconds"}


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
        self.extend([record])

    def extend(self, records: Sequence[dict[str, Any]]) -> None:
        """Write records that belong together, at once."""
        append_lines(self.path, records)
        self.records += records
        self._known |= {identity(record) for record in records}


def identity(record: dict[str, Any]) -> tuple[Any, ...]:
    """What `record` measures."""
    return tuple(record.get(key) for key in IDENTITY)


def read(path: Path) -> list[dict[str, Any]]:
    """All records of a file; a line that is none is refused by number."""
    if not path.exists():
        raise FileNotFoundError(f"results={path}: no such file; run migm.evaluate first")
    records = read_lines(path)
    for number, record in enumerate(records, 1):
        if fault := type_fault(record):
            raise UserError(f"{path}, line {number} is no result record: {fault}")
    return records


def type_fault(record: Mapping[str, Any]) -> str | None:
    """What keeps a JSON object from being a record: a key that is missing, or a value of another kind."""
    missing = REQUIRED - set(record)
    if missing:
        return f"it lacks {', '.join(sorted(missing))}"
    for key, value in record.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        whole = key not in ("num_steps", "num_full_steps") or (isinstance(value, int) and 0 <= value < 1e9)
        if key in NUMBERS and not (number and whole):
            return f"{key}={value} is not a {'number' if whole else 'count'}"
        if key in TEXTS and not isinstance(value, str):
            return f"{key}={value} is not a text"
        if key in IDENTITY and isinstance(value, list | dict):
            return f"{key}={value} is neither a text nor a number"
    return None


def point_label(accelerator: str, num_steps: int, num_full_steps: int, variant: str = "") -> str:
    """How a point is called everywhere: `vanilla 16`, `shortcut 16,4`, `taylorseer 16,6 interval=4`, `teacache 16`.

    `num_full_steps` 0 is one that is decided while sampling.
    """
    steps = f"{num_steps}" if num_full_steps in (0, num_steps) else f"{num_steps},{num_full_steps}"
    return f"{accelerator} {steps} {variant}".rstrip()


def file_name(label: str) -> str:
    """The label of a point without what a file system might not like."""
    return re.sub(r"[^\w,=.+-]+", "_", label)
