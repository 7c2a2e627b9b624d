"""Long loops show where they are: a bar in a terminal, lines in a job's log."""

import io

import pytest
from rich.console import Console

import migm.runtime.progress as progress_module
from migm.runtime.console import Plain
from migm.runtime.progress import LineProgress, Parts, job, progress


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


def test_what_is_left_of_all_parts_follows_from_the_rate_so_far(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    parts = Parts({"collect": 100.0, "train": 50.0, "evaluate": 200.0})
    assert parts.left("collect", 0.0) is None  # nothing is known yet
    now[0] = 10.0
    assert parts.left("collect", 0.5) == pytest.approx((10, 10 + 250 / 5))  # 5 units a second
    now[0] = 20.0
    assert parts.left("train", 0.0) == pytest.approx((50 / 5, 250 / 5))
    now[0] = 40.0  # half of the training took 20 seconds, so 20 more, and 125 units took 40 seconds
    assert parts.left("train", 0.5) == pytest.approx((20, 20 + 200 * 40 / 125))
    now[0] = 60.0
    assert parts.left("evaluate", 1.0) == pytest.approx((0, 0))


def test_a_part_that_goes_on_counts_only_what_this_start_did(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    parts = Parts({"collect": 100.0, "train": 50.0, "evaluate": 200.0})
    assert parts.left("train", 0.8) is None  # collected before, and trained for the most part
    now[0] = 5.0
    assert parts.left("train", 0.9) == pytest.approx((5, 5 + 200))  # 5 units in 5 seconds


def test_only_the_parts_of_a_job_show_what_is_left_of_it(monkeypatch):
    monkeypatch.setattr(LineProgress, "line_every", 0.0)
    file = io.StringIO()
    with job({"collect": 4.0, "train": 4.0}):
        for part in ("collect", "other"):
            with progress(Console(file=file, width=120), "images", part=part) as bar:
                bar.advance(bar.add_task(part, total=2))
    with progress(Console(file=file, width=120), "images", part="train") as bar:
        bar.advance(bar.add_task("train", total=2))
    lines = file.getvalue().splitlines()
    assert [line.split()[0] for line in lines if "in all" in line] == ["collect"] * sum("collect" in x for x in lines)


def test_a_part_that_nobody_sees_does_not_disturb_the_time_that_is_left(monkeypatch):
    """`tune` evaluates quietly inside of its search: the search's clock must not begin anew each time."""
    now, seen = [0.0], []
    monkeypatch.setattr(LineProgress, "line_every", 0.0)
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with job({"search": 4.0, "evaluate": 4.0}) as _, progress(Console(file=io.StringIO()), "runs", "search") as bar:
        task = bar.add_task("search", total=4)
        for _ in range(2):
            now[0] += 10
            with progress(Plain(quiet=True), "images", part="evaluate") as inner:
                inner.advance(inner.add_task("evaluate", total=1))
            bar.advance(task)
            seen.append(progress_module.running[-1].left("search", bar.tasks[0].completed / 4))
    assert seen == [pytest.approx((30, 70)), pytest.approx((20, 60))]
