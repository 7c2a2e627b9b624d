"""`results.jsonl`: one JSON line per measured value, appended and synced, rewritten only by `translate`."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from migm.runtime.errors import UserError
from migm.runtime.files import write_atomic
from migm.runtime.jsonl import append_lines, read_lines
from migm.runtime.writing import writing

# Keys that tell how an image was made, whatever its input and its seed are.
METHOD = ("accelerator", "settings", "num_steps", "num_full_steps")
MODEL = ("base", "decoder", "predictor", "sampling")

# Two records that agree in these keys are the same measurement; other keys describe how it was made.
IDENTITY = ("metric", *METHOD, "seed_set", *MODEL, "inputs", "reference")

# Keys that every record must hold.
REQUIRED = {"metric", "value", "accelerator", "num_steps", "num_full_steps", "base", "sampling"}

HASHED, HASH = ("settings", "sampling"), re.compile("[0-9a-f]{12}")  # until version 0.1, now identities

TEXTS = {"metric", "accelerator", "variant", "base", "sampling", "time", "unit", "counter"}
NUMBERS = {"value", "num_steps", "num_full_steps", "n", "seed_set", "mean_full_steps", "seconds"}


class Results:
    """Records of a file, to read and append; a line cut off by a kill counts as not measured."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.records = read(self.path) if self.path.exists() else []
        self._identities = {identity(record) for record in self.records}

    def has(self, record: dict[str, Any]) -> bool:
        """Return whether a record of the same measurement exists, with any value."""
        return identity(record) in self._identities

    def append(self, record: dict[str, Any]) -> None:
        """Append one record to the file."""
        self.extend([record])

    def extend(self, records: Sequence[dict[str, Any]]) -> None:
        """Append records that belong together, in one write."""
        append_lines(self.path, records)
        self.records += records
        self._identities |= {identity(record) for record in records}

    def translate(self, former: Mapping[str, str]) -> tuple[int, int]:
        """Replace the hashes in records of an earlier version by the identities to which `former` maps them.

        The file is replaced atomically; the file as the earlier version left it is kept as `<name>.former`. Returns
        the number of translated records, and the number of records whose settings `former` lacks.
        """
        with writing(self.path, str(self.path), waiting=lambda _: None):  # other commands may append meanwhile
            before = read(self.path)
            records = [{**r, **{key: former.get(r[key], r[key]) for key in HASHED if key in r}} for r in before]
            if records != before:
                backup = self.path.with_name(f"{self.path.name}.former")
                if not backup.exists():  # a later start may translate further points
                    write_atomic(backup, self.path.read_bytes())
                write_atomic(self.path, "".join(json.dumps(record) + "\n" for record in records))
        self.records, self._identities = records, {identity(record) for record in records}
        unknown = sum(map(is_former, records))
        return sum(map(is_former, before)) - unknown, unknown


def is_former(record: Mapping[str, Any]) -> bool:
    """Return whether an earlier version wrote a record, which holds hashes instead of identities."""
    return any(HASH.fullmatch(str(record.get(key, ""))) for key in HASHED)


def identity(record: dict[str, Any]) -> tuple[Any, ...]:
    """Return the values of IDENTITY, which tell measurements apart."""
    return tuple(record.get(key) for key in IDENTITY)


def read(path: Path) -> list[dict[str, Any]]:
    """Read all records of a file; FileNotFoundError without a file, UserError naming a line that is no record."""
    if not path.exists():
        raise FileNotFoundError(f"results={path}: no such file; run migm.evaluate first")
    records = read_lines(path)
    for number, record in enumerate(records, 1):
        if fault := type_fault(record):
            raise UserError(f"{path}, line {number} is no result record: {fault}")
    return records


def type_fault(record: Mapping[str, Any]) -> str | None:
    """Return why a JSON object is no record (a missing key, a value of another type), or None."""
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


def file_name(label: str) -> str:
    """Return a point's label without characters that file systems may refuse."""
    return re.sub(r"[^\w,=.+-]+", "_", label)
