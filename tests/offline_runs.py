"""Reads what an offline run of W&B would upload: the log in `run-<id>.wandb`."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

HEADER, BLOCK = 7, 1 << 15
FULL, FIRST, LAST = 1, 2, 4  # of LevelDB's log format, which W&B writes; 3 is in the middle


def records(path: Path) -> Iterator[Record]:
    """All records: each is cut into chunks (checksum, length, kind, bytes) that do not cross blocks of 32 KiB."""
    data, place, whole = path.read_bytes(), HEADER, b""
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:  # the rest of a block, too short for a chunk
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        chunk = data[place + HEADER : place + HEADER + length]
        if len(chunk) < length:  # being written
            return
        whole = chunk if kind in (FULL, FIRST) else whole + chunk
        place += HEADER + length
        if kind in (FULL, LAST):
            yield Record.FromString(whole)


def ended(path: Path, patience: float = 60.0) -> list[Record]:
    """All records of a run, once its last is there: `finish()` does not wait for W&B's own process to write it."""
    last = time.monotonic() + patience
    while time.monotonic() < last:
        found = list(records(path))
        if any(record.HasField("exit") for record in found):
            return found
        time.sleep(0.1)
    raise TimeoutError(f"{path} has no end")


def offline_runs(folder: Path) -> list[dict[str, Any]]:
    """Every run below `folder`: what it is called, its config, the last value of everything logged, its media."""
    return [_run(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def _run(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"config": {}, "logged": {}, "media": path.parent / "files"}
    for record in ended(path):
        if record.HasField("run"):
            run = record.run
            found |= {key: getattr(run, key) for key in ("project", "run_group", "job_type", "display_name", "run_id")}
            found["config"] |= _values(run.config.update)
        elif record.HasField("config"):
            found["config"] |= _values(record.config.update)
        elif record.HasField("history"):
            found["logged"] |= _values(record.history.item)
    return found


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
