"""Read and append JSON-lines files; appends are synced, and replace a last line that a kill cut off."""

import codecs
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from migm.runtime.errors import UserError
from migm.runtime.files import write_atomic
from migm.runtime.reading import decoded
from migm.runtime.writing import writing


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read all objects of a file; a last line cut off by a kill is ignored, other damage is refused by line number."""
    return parse_lines(path.read_bytes(), path)


def parse_lines(data: bytes, origin: object) -> list[dict[str, Any]]:
    """Parse the bytes of a JSON-lines file as `read_lines` does; `origin` names the file in errors."""
    objects = []
    for number, line, whole in numbered_lines(_text(data, origin)):
        if (entry := _object(line)) is not None:
            objects.append(entry)
        # We append UTF-8. A file of another encoding without a whole line is damaged, not cut off.
        elif whole or (number == 1 and _is_wide(data)):
            raise UserError(f"{origin}, line {number} is not a JSON object; restore the file or delete it")
    return objects


def numbered_lines(text: str) -> Iterator[tuple[int, str, bool]]:
    """Yield the number and text of every line, and whether it ends with a newline."""
    *whole, rest = text.split("\n")
    yield from ((number, line, True) for number, line in enumerate(whole, 1))
    if rest:
        yield len(whole) + 1, rest, False


def parsed(text: str) -> Any:
    """Return the value of a JSON text; ValueError if it is invalid or nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def dumped(entries: Iterable[dict[str, Any]]) -> str:
    """Return objects as JSON lines."""
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def append_lines(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Append objects in one write and sync it, after removing a line that a kill cut off.

    Several commands may append to one file: they take turns.
    """
    with writing(path, str(path), waiting=lambda _: None):
        _append(path, entries)


def append_line(path: Path, entry: dict[str, Any]) -> None:
    """Append one object, as `append_lines` does."""
    append_lines(path, [entry])


def _append(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    data = path.read_bytes() if path.exists() else b""
    if _is_wide(data):
        parse_lines(data, path)  # raises an error before unreadable content is replaced
    text = _text(data, path)
    if text and (not text.endswith("\n") or _is_wide(data)):
        whole, cut_off = text[: text.rfind("\n") + 1], text[text.rfind("\n") + 1 :]
        write_atomic(path, whole + (cut_off + "\n" if _object(cut_off) is not None else ""))
    with path.open("a", encoding="utf-8") as file:
        file.write(dumped(entries))
        file.flush()
        os.fsync(file.fileno())


def _text(data: bytes, origin: object) -> str:
    """Decode a file's bytes, without a last UTF-8 character that a kill cut off."""
    end = data.rfind(b"\n") + 1
    try:
        data[end:].decode()
    except UnicodeDecodeError:
        if not _is_wide(data):
            return decoded(data[:end], origin) + "\ufffd"
    return decoded(data, origin)


def _is_wide(data: bytes) -> bool:
    """Return whether the bytes are UTF-16 or UTF-32, as some Windows shells write redirected output."""
    return data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE[:2]))


def _object(line: str) -> dict[str, Any] | None:
    with suppress(ValueError):
        return entry if isinstance(entry := parsed(line), dict) else None
