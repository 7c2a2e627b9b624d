"""Write a report: tables on the console and as files, figures, one HTML page, and problems of the results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from migm.config.fronts import Front
from migm.evaluation.results import file_name
from migm.reporting.audit import Problem, StudyLines, audit, located
from migm.reporting.front_file import FrontFile, beside
from migm.reporting.html import page, study_data
from migm.reporting.pictures import Pictures
from migm.reporting.plots import draw_all
from migm.reporting.summary import Row, Summary, summarise, table
from migm.reporting.tables import best_two, comma_separated, deltas, equal_time, fronts, latex, markdown
from migm.reporting.wandb import Tracker
from migm.runtime.console import Plain
from migm.runtime.errors import UserError
from migm.runtime.files import write_atomic
from migm.runtime.owned import own
from migm.runtime.reading import read_text

TITLE = "migm: quality and cost"
SHOWN = 8  # problems on the console; the page and problems.txt hold all


def write_report(
    results: Sequence[str | Path],
    folder: str | Path,
    baseline: str = "",
    images: Sequence[str | Path] = (),
    logged: Tracker | None = None,
    front: Front | None = None,
) -> Path:
    """Report on results files into `folder`, or into one sub-folder per study if there are several -> the page.

    `baseline` is the label of the row to compare with, by default vanilla with the most steps. `images`
    are folders of `migm.generate folder=` to compare, by default the previews beside the results.
    `logged` also logs the studies in W&B and writes their dashboard beside the page. `front` is shown with the studies
    of its base and metric.
    """
    folder, console = Path(folder), Plain()
    console.width = max(console.width, 120)  # so that a row fits one line
    studies, problems = audit(results)
    if not studies:
        raise UserError(". ".join(["results: no records; run migm.evaluate first", *map(str, problems[:SHOWN])]))
    planned = [(study, *_compared(study, baseline, len(studies) == 1, problems)) for study in studies]
    planned = [(study, summary, row) for study, summary, row in planned if row is not None]
    if not planned:
        raise UserError(". ".join(str(problem) for problem in problems[-SHOWN:]))
    shown, html = [], folder / "index.html"
    own(folder, "report", "folder", known=html.is_file() and f"<title>{TITLE}</title>" in read_text(html))
    for number, (study, summary, row) in enumerate(planned, 1):
        place = folder if len(planned) == 1 else folder / f"{number}"
        pictures = _pictures(study, summary, images)
        file = beside(front, summary)
        shown.append(_write_study(study.name, summary, row, place, pictures, file))
        _print(console, study.name, *table(summary, row))
        if file:
            _print(console, file.label, *file.table(best=True))
        if logged:
            logged.log_report(study.name, summary, row, place)
    if logged:
        logged.write_dashboard([summary for _, summary, _ in planned], folder / "dashboard.json")
    write_atomic(folder / "problems.txt", "".join(f"{problem}\n" for problem in problems))
    write_atomic(html, page(TITLE, shown, [str(problem) for problem in problems]))
    for problem in problems[:SHOWN]:
        console.print(str(problem), style="yellow")
    if len(problems) > SHOWN:
        console.print(f"and {len(problems) - SHOWN} more, in {folder / 'problems.txt'}", style="yellow")
    console.print(f"report in {html}")
    return html


def _compared(study: StudyLines, baseline: str, only: bool, problems: list[Problem]) -> tuple[Summary, Row | None]:
    """Return a study's summary and baseline row.

    If one of several studies lacks the baseline, its row is None and a problem is added.
    """
    summary = summarise(study.records)
    labels = [row.label for row in summary.rows]
    label = baseline or next((x for x in reversed(labels) if x.startswith("vanilla")), labels[0])
    try:
        row = summary.baseline(label)
        table(summary, row)
    except UserError as error:
        if only:
            raise
        problems.append(Problem("missing reference", located(study.lines), f"{error}; this study is left out"))
        return summary, None
    return summary, row


def _write_study(
    name: str, summary: Summary, row: Row, folder: Path, pictures: Pictures, file: FrontFile | None
) -> dict[str, Any]:
    """Write the files of one study -> the page's data of it."""
    values, front_table = table(summary, row), fronts(summary)
    copies = {"markdown": markdown(*values), "latex": latex(*values), "csv": comma_separated(*values)}
    for suffix, text in zip(("md", "tex", "csv"), copies.values(), strict=True):
        write_atomic(folder / f"table.{suffix}", text)
    write_atomic(folder / "deltas.md", markdown(*deltas(summary, row)))
    write_atomic(folder / "best.md", markdown(*best_two(summary, row)))
    write_atomic(folder / "fronts.md", markdown(*front_table))
    write_atomic(folder / "equal_time.md", equal_time(summary))
    if file:
        write_atomic(folder / "front_file.md", markdown(*file.table()))
    draw_all(summary, folder, file)
    return study_data(name, summary, row, front_table, copies, pictures) | {"front": file and file.page_data()}


def _pictures(study: StudyLines, summary: Summary, images: Sequence[str | Path]) -> Pictures:
    pictures = Pictures()
    for folder in map(Path, images):
        pictures.add_gallery(folder, summary.about["base"])
    for folder in () if images else study.folders:
        for row in summary.rows:
            path = folder / "images" / f"{file_name(row.label)}.png"
            if path.exists():
                pictures.add_preview(row.label, path)
    return pictures


def _print(console: Plain, name: str, headings: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    shown = Table(*headings, title=name)
    for row in cells:
        shown.add_row(*row)
    console.print(shown)
