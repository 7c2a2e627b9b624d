"""The journal of a tuning, `trials.jsonl`: what it is about, its plan, and a line for every measured candidate."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from migm.runtime.errors import UserError
from migm.runtime.jsonl import append_line, read_lines
from migm.tuning.rungs import Stopwatch

FORMAT = "migm-tune/1"


class Journal:
    """Lines of a file, appended and synced one by one; a line that a kill cut off counts as not written.

    The first line holds the format and the settings. Another start has to have equal settings. Every line holds the
    seconds that all starts had spent by then, so that a later start, which began at `started` on the monotonic clock,
    has the rest of the time.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], seconds: float, started: float | None = None):
        self.path = path
        self.lines = read_lines(path) if path.exists() else []
        before = max((line.get("spent", 0.0) for line in self.lines), default=0.0)
        self.clock = Stopwatch(seconds, before, started)
        settings = json.loads(json.dumps(settings))
        if not self.lines:
            self.begun = False
            self.settings = settings
            return
        self.begun = True
        first = self.lines[0]
        if first.get("format") != FORMAT:
            raise UserError(f"{path} is no {FORMAT} file; choose another name=")
        if (before := first["settings"]) != settings:
            raise UserError(f"{path} was begun with {_difference(before, settings)}; choose another name=")

    def add(self, kind: str, **entry: Any) -> None:
        """Append a line of a kind, after the line of the settings."""
        if not self.begun:
            self._append({"format": FORMAT, "settings": self.settings})
            self.begun = True
        self._append({"kind": kind, **entry})

    def _append(self, line: dict[str, Any]) -> None:
        line = {**line, "spent": round(self.clock.spent, 3)}
        append_line(self.path, line)
        self.lines.append(json.loads(json.dumps(line)))

    def of(self, kind: str) -> Iterator[dict[str, Any]]:
        """Yield the lines of a kind."""
        yield from (line for line in self.lines if line.get("kind") == kind)

    def one(self, kind: str, **about: Any) -> dict[str, Any] | None:
        """Return the first line of a kind that has these entries, if any."""
        return next((line for line in self.of(kind) if all(line.get(k) == v for k, v in about.items())), None)


def _difference(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> str:
    """Return the first key whose values differ, with both."""
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            return _difference(old, new, f"{prefix}{key}.")
        return f"{prefix}{key}={json.dumps(old)}, not {json.dumps(new)}"
    return "the same settings"
