"""Long loops show where they are: a bar in a terminal, lines in a job's log."""

import io

import pytest
from rich.console import Console

from migm.runtime.progress import LineProgress, progress


def shown(monkeypatch: pytest.MonkeyPatch, every: float) -> list[str]:
    """What four units of work write to a console."""
    monkeypatch.setattr(LineProgress, "line_every", every)
    file = io.StringIO()
    with progress(Console(file=file, width=100), "images") as bar:
        task = bar.add_task("collect", total=4)
        for _ in range(4):
            bar.advance(task, 1)
    return file.getvalue().splitlines()


def test_a_log_gets_lines_while_the_work_goes_on(monkeypatch):
    lines = shown(monkeypatch, every=0.0)
    assert [line.split()[2] for line in lines] == ["1/4", "2/4", "3/4", "4/4"]
    assert all(line.startswith("collect") and "images" in line and "left" in line for line in lines)


def test_lines_come_no_more_often_than_said(monkeypatch):
    assert [line.split()[2] for line in shown(monkeypatch, every=3600.0)] == ["1/4", "4/4"]


def test_a_terminal_has_a_moving_bar_and_no_lines():
    assert not isinstance(progress(Console(force_terminal=True), "images"), LineProgress)
    assert isinstance(progress(Console(file=io.StringIO()), "images"), LineProgress)
