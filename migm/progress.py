"""The progress bar of every long loop."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class Rate(ProgressColumn):
    """Units per second so far."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="cyan")


def progress(console: Console, unit: str) -> Progress:
    """Done of total, rate and remaining time; plain consoles get the last state only."""
    columns = (MofNCompleteColumn(), TextColumn(unit), Rate(), TextColumn("left"), TimeRemainingColumn())
    return Progress(TextColumn("{task.description}"), BarColumn(), *columns, console=console)
