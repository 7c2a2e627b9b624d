"""Show a front file beside measured points: where its points lie, and a table of them."""

from dataclasses import dataclass
from typing import Any

from migm.config.fronts import Front, FrontPoint, candidates, named, quality
from migm.reporting.summary import Row, Summary
from migm.reporting.tables import Table


@dataclass(frozen=True)
class ShownPoint:
    """A point of a front at the time that it would take here, in milliseconds an image."""

    point: FrontPoint
    ms: float
    best: bool  # no other point of the front beats it


@dataclass(frozen=True)
class FrontFile:
    """A front's points beside those of a summary; `scale` says which time its speed-ups are taken from."""

    front: Front
    points: list[ShownPoint]
    scale: str

    @property
    def label(self) -> str:
        """The name of its line in figures."""
        return f"front file ({self.scale})"

    def table(self, best: bool = False) -> Table:
        """Return headings, and a line per point, fastest first; with `best` only of points that no other beats."""
        front = self.front
        shares = front.vanilla.value > 0
        headings = ["point of the front file", front.metric, "quality", "speed-up", "ms / image", "on its front"]
        cells = [
            [
                named(each.point),
                f"{each.point.value:.3f}",
                f"{quality(front, each.point.value):.3f}" if shares else "",
                f"{each.point.speed:.2f}",
                f"{each.ms:.2f}",
                "yes" if each.best else "",
            ]
            for each in sorted(self.points, key=lambda each: each.ms)
            if each.best or not best
        ]
        return headings, cells

    def page_data(self) -> dict[str, Any]:
        """Return what the page draws of it."""
        headings, cells = self.table()
        points = [{"x": each.ms, "y": each.point.value, "label": named(each.point)} for each in self.points]
        return {
            "metric": self.front.metric,
            "label": self.label,
            "points": points,
            "headings": headings,
            "cells": cells,
        }


def beside(front: Front | None, summary: Summary) -> FrontFile | None:
    """Place a front beside a summary; None unless it is of the same base and one of its metrics.

    Its speed-ups are taken from the time of the summary's vanilla row with as many steps, where that is measured, else
    from the front's own time.
    """
    if front is None or front.metric not in summary.metrics() or summary.about["base"] not in front.base:
        return None
    reference, device = front.vanilla, str(front.about.get("device") or "another device")
    here = next((row for row in summary.rows if _is(row, reference.num_steps) and row.seconds), None)
    whole = 1e3 * here.seconds if here and here.seconds else reference.ms
    if whole is None:
        return None
    scale = f"{device}, shares of {here.label} here" if here else device
    best = candidates(front)
    return FrontFile(front, [ShownPoint(p, whole / p.speed, p in best) for p in front.points], scale)


def _is(row: Row, num_steps: int) -> bool:
    return row.accelerator == "vanilla" and row.num_steps == num_steps
