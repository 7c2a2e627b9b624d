"""Tables and the figure of a benchmark's rows, variants side by side; all rows are of one device."""

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter
from rich.table import Table

from migm.benchmarks.ledger import Row
from migm.runtime.console import Plain
from migm.runtime.figures import plt, write_figure

NAMES = {"full": "full step", "cheap": "cheap step, features", "cheap_and_tail": "cheap step with its tail"}
Column = tuple[str, Callable[[Row], str]]


def number(key: str, form: str = ".3f", scale: float = 1.0) -> Callable[[Row], str]:
    """Return the cell of a row: its value, or nothing where it has none."""
    return lambda row: "" if row.get(key) is None else format(row[key] if scale == 1.0 else row[key] * scale, form)


TIMES: list[Column] = [
    ("ms an image", number("ms_per_image")),
    ("of the first", number("of_first", ".2f")),
    ("full steps", number("of_full_step")),
    ("GFLOP", number("gflop")),
    ("floor ms", number("floor_ms")),
    ("of floor", number("of_floor", ".0%")),
    ("FFE", number("ffe", ".2f")),
    ("speed-up", number("speedup", ".2f")),
    ("by FFE", number("ffe_speedup", ".2f")),
    ("of it", number("of_ffe", ".0%")),
    ("against", lambda row: row.get("vanilla_from", "")),
]
TRAINING: list[Column] = [
    ("batch", number("batch_size", "d")),
    ("ms a pair", number("ms_per_sample")),
    ("pairs/s", number("samples_per_s", ".1f")),
    ("GFLOP", number("gflop")),
    ("floor ms", number("floor_ms")),
    ("of floor", number("of_floor", ".0%")),
    ("first step, s", number("first_s")),
]
WAITS: list[Column] = [
    ("first run, s", number("first_s")),
    ("runs before", number("runs_before", "d")),
    ("warm-up, s", number("warm_up_s")),
    ("later, s", number("later_s")),
    ("new prompt length, s", number("new_length_s")),
    ("of later", number("of_later", ".2f")),
]
MEMORY: list[Column] = [
    ("peak MB", number("peak_bytes", ".1f", 1e-6)),
    ("weights MB", number("weights_bytes", ".1f", 1e-6)),
    ("features MB", number("features_bytes", ".1f", 1e-6)),
    ("of weights and features", number("of_weights_and_features", ".2f")),
]
PROFILE: list[Column] = [
    ("device ms", number("device_ms")),
    ("launches", number("launches", "d")),
    ("host waits", number("host_waits", "d")),
]
TABLES: list[tuple[str, tuple[str, ...], list[Column]]] = [
    ("times", ("step", "run"), TIMES),
    ("waiting for the first image, decoding excluded", ("run", "new_length"), WAITS),
    ("training steps", ("train",), TRAINING),
    ("memory beyond weights", ("memory",), MEMORY),
    ("profile", ("profile",), PROFILE),
]


def show(rows: Sequence[Row], title: str) -> None:
    """Print the rows of one batch size as tables, variants one below the other, with ratios to the first."""
    for heading, kinds, columns in TABLES:
        chosen = [row for kind in kinds for row in side_by_side(rows) if row["kind"] == kind]
        used = [(name, cell) for name, cell in columns if any(map(cell, chosen))]
        if not chosen:
            continue
        table = Table("part", "variant", *(name for name, _ in used), title=f"{heading}: {title}")
        for row in chosen:
            table.add_row(NAMES.get(row["part"], row["part"]), row["variant"], *(cell(row) for _, cell in used))
        Plain().print(table)
    for row in rows:
        if row["kind"] == "profile":
            show_operators(row)


def show_operators(row: Row) -> None:
    """Print the operators of a profile."""
    part = NAMES.get(row["part"], row["part"])
    table = Table("operator", "ms", "calls", title=f"{part}, {row['variant']}, batch {row['batch_size']}")
    for each in row["operators"]:
        table.add_row(each["name"], f"{each['ms']:.4f}", str(each["calls"]))
    Plain().print(table)


def side_by_side(rows: Sequence[Row]) -> list[Row]:
    """Return the rows part by part and variant by variant, with `of_first` where there are several variants."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    parts = list(dict.fromkeys((row["kind"], row["part"]) for row in rows))
    found = {(row["kind"], row["part"], row["variant"]): row for row in rows}
    ordered = []
    for part in parts:
        first = found.get((*part, variants[0]))
        for variant in variants:
            row = found.get((*part, variant))
            if row is not None and len(variants) > 1 and first and "ms_per_image" in row:
                row = {**row, "of_first": row["ms_per_image"] / first["ms_per_image"]}
            ordered += [row] if row is not None else []
    return ordered


def figure_path(output: Path, name: str, device: str) -> Path:
    """Return the figure beside `output`, one for each run's name and device."""
    slug = re.sub(r"\W+", "_", f"{name} {device}").strip("_").lower()
    return output.with_name(f"{output.stem}_{slug}.png")


def draw(rows: Sequence[Row], path: Path) -> bool:
    """Draw milliseconds of steps and runs as bars, variants side by side, with the floor of each.

    Returns whether there was anything to draw.
    """
    timed = [row for row in rows if row["kind"] in ("step", "run")]
    if not timed:
        return False
    device, *others = {row["device"] for row in timed}
    if others:
        raise ValueError(f"rows of two devices, {device} and {others[0]}")
    batches = list(dict.fromkeys(row["batch_size"] for row in timed))
    variants = list(dict.fromkeys(row["variant"] for row in timed))
    most = max(len({(r["kind"], r["part"]) for r in timed if r["batch_size"] == b}) for b in batches)
    height = 1.2 + len(batches) * (0.8 + most / 2 * (0.25 + 0.22 * len(variants)))
    kinds = [kind for kind in ("step", "run") if any(row["kind"] == kind for row in timed)]
    shape, size = (len(batches), len(kinds)), (1 + 5 * len(kinds), height)
    figure, grid = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False)
    for axes, (batch, kind) in zip(grid.flat, itertools.product(batches, kinds), strict=True):
        chosen = [row for row in timed if (row["batch_size"], row["kind"]) == (batch, kind)]
        if chosen:
            bars(axes, chosen, variants)
            what = {"step": "parts of a step", "run": "whole runs"}[kind]
            axes.set(title=f"{what}, batch {batch}", xlabel="ms an image")
        else:
            axes.set_axis_off()
    colours: list[Any] = [Patch(color=f"C{i}", label=variant) for i, variant in enumerate(variants)]
    handles = [*colours, Line2D([], [], color="black", label="floor")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(device)
    write_figure(figure, path)
    return True


def bars(axes: Axes, rows: Sequence[Row], variants: Sequence[str]) -> None:
    """Draw one bar for each row on a logarithmic axis, grouped by part, and a line at its floor."""
    parts: list[str] = list(dict.fromkeys(row["part"] for row in rows))
    present = [variant for variant in variants if any(row["variant"] == variant for row in rows)]
    width = 0.8 / len(present)
    for i, variant in enumerate(present):
        chosen = [row for row in rows if row["variant"] == variant]
        places = [parts.index(row["part"]) + (i - (len(present) - 1) / 2) * width for row in chosen]
        colour = f"C{list(variants).index(variant)}"
        drawn = axes.barh(places, [row["ms_per_image"] for row in chosen], 0.9 * width, color=colour)
        axes.bar_label(drawn, fmt=lambda ms: f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}", padding=3, fontsize=8)
        floors: Any = [row["floor_ms"] for row in chosen]
        ends = ([place - width / 2 for place in places], [place + width / 2 for place in places])
        axes.vlines(floors, *ends, color="black")
    axes.set_yticks(range(len(parts)), [NAMES.get(part, part) for part in parts])
    axes.invert_yaxis()
    values = [row[key] for row in rows for key in ("ms_per_image", "floor_ms") if row[key] > 0]
    axes.set(xscale="log", xlim=(min(values) / 2, 4 * max(values)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda ms, _: ""))
