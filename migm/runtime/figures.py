"""Set up matplotlib for all figures: without a screen, and without reading $ in texts as formulas."""

from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from migm.runtime.files import replacing

matplotlib.use("Agg")
matplotlib.rcParams["text.parse_math"] = False

__all__ = ["panels", "plain_ticks", "plt", "write_figure"]


def panels(number: int, width: float = 5.2, height: float = 4.4) -> tuple[Figure, list[Any]]:
    """Return a figure and its `number` axes in a row."""
    figure, axes = plt.subplots(1, number, figsize=(width * number, height), layout="constrained", squeeze=False)
    for panel in axes[0]:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])


def write_figure(figure: Figure, path: Path, dpi: int = 130) -> None:
    """Write the figure to `path`, replacing an old file at once, and close it."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
    plt.close(figure)


class PlainLog(LogFormatter):
    """Labels of a logarithmic axis as plain numbers: 0.4 in place of 4e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def plain_ticks(*axes: Any) -> None:
    """Write plain numbers on logarithmic axes, where matplotlib would write formulas."""
    for axis in axes:
        axis.set_major_formatter(PlainLog())
        axis.set_minor_formatter(PlainLog())
