"""Show the progress of every long loop."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
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


class Parts:
    """The parts of a command, one after the other, and the time that is left of all together.

    `work` is what each part takes, in any one unit; the rate so far tells how long the parts to come will take.
    """

    def __init__(self, work: Mapping[str, float]):
        self.work = dict(work)
        self.start = self.begun = time.monotonic()  # of all, and of the part
        self.part, self.first = "", 0.0  # the share of the part that was there before this start
        self.done = 0.0  # work that this start did in parts before

    def left(self, part: str, share: float) -> tuple[float, float] | None:
        """Return the seconds left of a part of which `share` is done, and of all; None while nothing is known."""
        now = time.monotonic()
        if part != self.part:
            self.done += self.work.get(self.part, 0.0) * (1 - self.first)
            self.part, self.first, self.begun = part, share, now
        here = share - self.first
        done, elapsed = self.done + self.work[part] * here, now - self.start
        if done <= 0:
            return None
        later = sum(list(self.work.values())[list(self.work).index(part) + 1 :])
        own = (now - self.begun) / here if here > 0 else self.work[part] * elapsed / done  # seconds of the whole part
        return own * (1 - share), own * (1 - share) + later * elapsed / done


class Whole(ProgressColumn):
    """A column with the time that is left of one part and of all.

    Where units take unequally long, a task has its field `share`: that of the part's work which is done.
    """

    def __init__(self, parts: Parts, part: str):
        super().__init__()
        self.parts, self.part = parts, part

    def render(self, task: Task) -> Text:
        share = task.fields.get("share", task.completed / task.total if task.total else 0.0)
        seconds = self.parts.left(self.part, share)
        here, whole = ("-:--:--",) * 2 if seconds is None else (timedelta(seconds=round(each)) for each in seconds)
        return Text(f"left {here}, in all {whole}", style="cyan")


running: list[Parts] = []  # those of the command that runs, if it said what they are


@contextmanager
def job(work: Mapping[str, float]) -> Iterator[None]:
    """Let the progress of the parts named in `work` also show what is left of all of them."""
    running.append(Parts(work))
    try:
        yield
    finally:
        running.pop()


def progress(console: Plain, unit: str, part: str = "") -> Progress:
    """Show done, total, rate and remaining time: a bar in a terminal, lines elsewhere.

    For one of the parts that `job` names, what is left of all of them is shown too.
    """
    described = TextColumn("{task.description}", markup=False)
    columns: list[ProgressColumn] = [MofNCompleteColumn(), Unit(unit), Rate()]
    if running and part in running[-1].work and not console.quiet:  # what nobody sees is no part of the whole
        columns.append(Whole(running[-1], part))
    else:
        columns += [TextColumn("left"), TimeRemainingColumn()]
    kind = Progress if console.is_terminal else LineProgress
    # The rate covers the last ten minutes: rich's default of half a minute would not contain two of the slowest steps.
    return kind(described, BarColumn(), *columns, console=console, speed_estimate_period=600)
