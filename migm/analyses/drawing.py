"""The look of all analysis figures."""

from pathlib import Path
from typing import Any

from migm.runtime.figures import plt

COLOURS = "viridis"  # of steps, early to late


def panels(number: int, width: float = 5.2, height: float = 4.4) -> tuple[Any, list[Any]]:
    """A figure of `number` axes in a row."""
    figure, axes = plt.subplots(1, number, figsize=(width * number, height), layout="constrained", squeeze=False)
    for one in axes[0]:
        one.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])


def save(figure: Any, path: Path) -> None:
    """Write a PNG and forget the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
