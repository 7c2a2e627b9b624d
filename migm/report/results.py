"""`results.jsonl`: one JSON line per measured value, appended and synced, never rewritten."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from migm.runtime import UserError

# What makes two records the same measurement; the rest describes how it came about.
IDENTITY = (
    "metric",
    "accelerator",
    "num_steps",
    "num_full_steps",
    "seed_set",
    "base",
    "predictor",
    "sampling",
    "reference",
)


class Results:
    """The records of a file, and a place to append more; a line cut off by a kill is dropped."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.records = read(self.path) if self.path.exists() else []
        self._known = {identity(record) for record in self.records}

    def has(self, record: dict[str, Any]) -> bool:
        """Whether a record of the same measurement is there, whatever its value."""
        return identity(record) in self._known

    def append(self, record: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.records.append(record)
        self._known.add(identity(record))


def identity(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record.get(key) for key in IDENTITY)


def read(path: Path) -> list[dict[str, Any]]:
    """All records of a file; a damaged line other than a cut-off last one is refused by number."""
    if not path.exists():
        raise FileNotFoundError(f"results={path}: no such file; run migm.evaluate first")
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    if complete != text:
        path.write_text(complete, encoding="utf-8")
    records = []
    for number, line in enumerate(complete.splitlines(), 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not JSON ({error})") from error
    return records


def read_all(paths: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Records of several files; of the same measurement the last counts."""
    latest = {identity(record): record for path in paths for record in read(Path(path))}
    return list(latest.values())
