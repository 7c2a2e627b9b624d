"""JSON-lines files that survive a kill: synced appends, a cut-off last line ignored and replaced."""

import codecs
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from migm.runtime.errors import UserError
from migm.runtime.files import write_atomic
from migm.runtime.reading import decoded
from migm.runtime.writing import writing


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All objects of a file; a last line cut off by a kill is ignored, other damage refused by number."""
    return parse_lines(path.read_bytes(), path)


def parse_lines(data: bytes, origin: object) -> list[dict[str, Any]]:
    """The same of a file's bytes, which errors say are of `origin`."""
    lines = _text(data, origin).split("\n")
    cut_off = lines.pop()  # empty when the file ends as it should
    # What is appended here is UTF-8: a file of another encoding that holds no whole line is damaged, not cut off.
    damaged = bool(cut_off) and not lines and _is_wide(data)
    objects = []
    for number, line in enumerate([*lines, cut_off] if damaged or _parses(cut_off) else lines, 1):
        if not _parses(line):
            raise UserError(f"{origin}, line {number} is not a JSON object; restore the file or delete it")
        objects.append(json.loads(line))
    return objects


def append_lines(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Add objects in one write and sync; what a kill left of a line is removed first.

    Several commands may add to one file: they take turns.
    """
    with writing(path, str(path), waiting=lambda _: None):
        _append(path, entries)


def append_line(path: Path, entry: dict[str, Any]) -> None:
    """Add one object, as `append_lines`."""
    append_lines(path, [entry])


def _append(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    data = path.read_bytes() if path.exists() else b""
    if _is_wide(data):
        parse_lines(data, path)  # refuses to replace what cannot be read
    text = _text(data, path)
    if text and (not text.endswith("\n") or _is_wide(data)):
        whole, cut_off = text[: text.rfind("\n") + 1], text[text.rfind("\n") + 1 :]
        write_atomic(path, whole + (cut_off + "\n" if _parses(cut_off) else ""))
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(entry) + "\n" for entry in entries))
        file.flush()
        os.fsync(file.fileno())


def _text(data: bytes, origin: object) -> str:
    """The text of a file's bytes; of UTF-8 without the character that a kill cut off."""
    end = data.rfind(b"\n") + 1
    try:
        data[end:].decode()
    except UnicodeDecodeError:
        if not _is_wide(data):
            return decoded(data[:end], origin) + "\ufffd"
    return decoded(data, origin)


def _is_wide(data: bytes) -> bool:
    """Whether it is UTF-16 or UTF-32, as some shells of Windows write what is copied through them."""
    return data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE[:2]))


def _parses(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
