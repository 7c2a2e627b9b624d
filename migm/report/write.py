"""Write a report: table on the console, Markdown, CSV, figures, one HTML page."""

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.table import Table

from migm.report.equal_time import compare
from migm.report.html import page
from migm.report.plots import draw_all
from migm.report.results import file_name, read_all
from migm.report.summary import Summary, summarise, table
from migm.runtime import write_atomic


def write_report(results: Sequence[str | Path], folder: str | Path, baseline: str, images: Path | None = None) -> Path:
    """Report on results files into `folder`; `baseline` is the label of the row to compare with.

    `images` is a folder of one PNG per point to show side by side. Returns the HTML page.
    """
    folder, console = Path(folder), Console()
    console.width = max(console.width, 120)  # one line a row, also where there is no terminal
    summary = summarise(read_all(results))
    labels = [row.label for row in summary.rows]
    chosen = summary.baseline(baseline or next((x for x in reversed(labels) if x.startswith("vanilla")), labels[0]))
    headings, cells = table(summary, chosen)
    write_atomic(folder / "table.md", markdown(headings, cells))
    write_atomic(folder / "equal_time.md", equal_time(summary))
    buffer = StringIO()
    csv.writer(buffer).writerows([headings, *cells])
    write_atomic(folder / "table.csv", buffer.getvalue())
    plots = draw_all(summary, folder)
    names = [file_name(label) for label in labels]
    grids = [images / f"{name}.png" for name in names if (images / f"{name}.png").exists()] if images else []
    html = folder / "index.html"
    write_atomic(html, page("migm: quality and cost", headings, cells, plots, grids, summary.about))
    shown = Table(*headings)
    for row in cells:
        shown.add_row(*row)
    console.print(shown)
    console.print(f"report in {html}")
    return html


def equal_time(summary: Summary) -> str:
    """Markdown tables of every method with a predictor against vanilla and reuse at equal time, for every metric."""
    methods = sorted({row.accelerator for row in summary.rows} - {"vanilla", "reuse"})
    pairs = [(metric, method) for metric in summary.metrics() for method in methods]
    return "\n".join(markdown(*compare(summary, metric, method, ["vanilla", "reuse"])) for metric, method in pairs)


def markdown(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    rule = "|" + "|".join(["---"] + ["---:"] * (len(headings) - 1)) + "|"
    lines = ["| " + " | ".join(row) + " |" for row in [headings, *cells]]
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"
