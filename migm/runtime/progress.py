"""Show the progress of every long loop."""

import math
import time
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from migm.runtime.console import Plain


class Rate(ProgressColumn):
    """A column with the mean number of units per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="cyan")


class Unit(ProgressColumn):
    """A column with what a bar counts; a task may count something else, its field `unit`."""

    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("unit", self.unit))


class LineProgress(Progress):
    """Progress for output that is not a terminal, such as a job's log: a line from time to time."""

    line_every = 30.0  # seconds
    last_line = -math.inf

    def update(self, *args: Any, **kwargs: Any) -> None:
        super().update(*args, **kwargs)
        self._line()

    def advance(self, *args: Any, **kwargs: Any) -> None:
        super().advance(*args, **kwargs)
        self._line()

    def _line(self) -> None:
        now = time.monotonic()
        if now - self.last_line >= self.line_every and not self.finished:
            self.last_line = now
            self.console.print(self)


def progress(console: Plain, unit: str) -> Progress:
    """Show done, total, rate and remaining time: a bar in a terminal, lines elsewhere."""
    described = TextColumn("{task.description}", markup=False)
    columns = (MofNCompleteColumn(), Unit(unit), Rate(), TextColumn("left"), TimeRemainingColumn())
    kind = Progress if console.is_terminal else LineProgress
    # The rate covers the last ten minutes: rich's default of half a minute would not contain two of the slowest steps.
    return kind(described, BarColumn(), *columns, console=console, speed_estimate_period=600)
