"""The common look of analysis figures."""

from typing import Any

from migm.runtime.figures import plt

COLOURS = "viridis"  # colour map of steps, early to late


def panels(number: int, width: float = 5.2, height: float = 4.4) -> tuple[Any, list[Any]]:
    """Return a figure and its `number` axes in a row."""
    figure, axes = plt.subplots(1, number, figsize=(width * number, height), layout="constrained", squeeze=False)
    for panel in axes[0]:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])
