"""One static HTML file that opens without network: each study's plot, tables and images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from migm.reporting.pictures import Pictures
from migm.reporting.plots import colours
from migm.reporting.summary import Row, Summary, further_costs
from migm.reporting.tables import Table
from migm.runtime.markup import filled

COSTS = (  # key of a row, name in full, name in tables
    ("time", "ms per image", "ms / image"),
    ("ffe", "FFE (full-forward equivalents)", "FFE"),
)


def page(title: str, studies: Sequence[Mapping[str, Any]], problems: Sequence[str]) -> str:
    """Return the whole document: `page.html` filled with its style, script and data."""
    folder = Path(__file__).parent
    document, style, script = ((folder / f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    data = {"studies": studies, "problems": problems}
    return filled(document, {"title": title}, data, style=style, script=script)


def study_data(
    name: str, summary: Summary, baseline: Row, fronts: Table, copies: Mapping[str, str], pictures: Pictures
) -> dict[str, Any]:
    """Return the page's data of one study; `copies` maps formats to the study's table as text."""
    further = further_costs(summary)
    costs = [*COSTS, *((heading, heading, heading) for heading in further)]
    rows: list[dict[str, Any]] = [
        {
            "label": row.label,
            "method": row.accelerator,
            "n": row.num_steps,
            "b": row.num_full_steps or round(row.full_steps or 0.0, 1),
            "variant": row.variant,
            "time": None if row.seconds is None else 1e3 * row.seconds,
            "ffe": row.ffe,
            "quality": row.quality,
            **{heading: costs_by_label[row.label] for heading, costs_by_label in further.items()},
        }
        for row in summary.rows
    ]
    measured = [cost for cost in costs if any(row[cost[0]] is not None for row in rows)]
    labels = [row.label for row in summary.rows if row.label in pictures.images]
    labels += [label for label in pictures.images if label not in labels]
    keys = pictures.keys(labels)
    return {
        "name": name,
        "facts": " · ".join(f"{key} {value}" for key, value in summary.about.items() if value),
        "baseline": baseline.label,
        "metrics": [{"name": metric, "up": up} for metric, up in summary.higher_is_better.items()],
        "costs": [{"key": key, "label": label, "short": short} for key, label, short in measured],
        "rows": rows,
        "colours": colours(row.accelerator for row in summary.rows),
        "fronts": {"headings": fronts[0], "cells": fronts[1]},
        "copy": dict(copies),
        "pictures": {
            "captions": [pictures.captions[key] for key in keys],
            "images": {label: [pictures.images[label].get(key) for key in keys] for label in labels},
        },
    }
