"""matplotlib as all figures use it: without a screen, and with texts as they are, whatever $ they hold."""

from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.ticker import LogFormatter

matplotlib.use("Agg")
matplotlib.rcParams["text.parse_math"] = False

__all__ = ["plain_ticks", "plt"]


def plain_ticks(*axes: Any) -> None:
    """Numbers on logarithmic axes, which matplotlib would write as formulas."""
    for axis in axes:
        axis.set_major_formatter(LogFormatter())
        axis.set_minor_formatter(LogFormatter())
