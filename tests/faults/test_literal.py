"""Paths, names and prompts are shown and written as they are, whatever of them is markup to rich, HTML, matplotlib."""

import ast
import io
import json
import re

import pytest
from matplotlib.image import imread
from rich.table import Table
from test_generate import generate, shared  # noqa: F401 (fixtures)
from tiny_parts import ROOT

import migm.train
import migm.training.run
from migm.human_eval.pairs import _page
from migm.reporting.html import page
from migm.reporting.tables import comma_separated, latex, markdown
from migm.runtime import markup
from migm.runtime.console import Plain
from migm.runtime.figures import plain_ticks, plt
from migm.runtime.progress import progress

ODD = ["o/[/x].png", "out/run [red]v2", "[bold]x[/bold]", "[link=x]", "a\\[b]", ":car: :smile:", "[/]"]
LONG = "/".join(f"a folder of many [{number}]" for number in range(40))


def console(**settings) -> tuple[Plain, io.StringIO]:
    file = io.StringIO()
    return Plain(file=file, **settings), file


@pytest.mark.parametrize("text", [*ODD, LONG])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_is_printed_as_it_is_and_whole(text, terminal):
    shown, file = console(force_terminal=terminal, color_system=None, width=None if not terminal else 60)
    shown.print(f"report in {text}", style="yellow")
    assert file.getvalue() == f"report in {text}\n"


@pytest.mark.parametrize("text", [*ODD, LONG])
def test_tables_rules_and_bars_hold_it_too(text):
    shown, file = console()
    table = Table(text, "n", title=text)
    table.add_row(text, "1")
    shown.print(table)
    assert [line.count(text) for line in file.getvalue().splitlines() if text in line] == [1, 1, 1]
    shown, file = console()
    shown.rule(text[:60])
    assert f" {text[:60]} " in file.getvalue()
    assert len(file.getvalue()) == 81
    shown, file = console()
    with progress(shown, "images") as bar:
        bar.advance(bar.add_task(text, total=1))
    assert file.getvalue().startswith(f"{text} ")


def test_in_a_terminal_tables_fit_into_it():
    shown, file = console(force_terminal=True, color_system=None, width=40)
    table = Table("where")
    table.add_row(LONG)
    shown.print(table)
    assert {len(line) for line in file.getvalue().splitlines()} == {40}


def test_there_is_one_console_and_one_matplotlib():
    for path in (ROOT / "migm").rglob("*.py"):
        imported = [
            f"{node.module}.{name.name}" if isinstance(node, ast.ImportFrom) else name.name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in node.names
        ]
        if path.name != "console.py":
            assert not {"rich.console.Console", "rich.print", "rich.markup.escape"} & set(imported), path
        if path.name != "figures.py":
            assert not {"matplotlib", "matplotlib.pyplot"} & set(imported), path


@pytest.mark.parametrize("place", ["o/[/x].png", "out [red]v2/[b]:car:.png"])
def test_generate_says_where_its_images_are(generate, tmp_path, place):  # noqa: F811
    said = generate(labels=[1], seeds=[0], output=tmp_path / place, folder=tmp_path / f"[/kept] {LONG[:150]}")
    assert f"in {tmp_path / place} and {tmp_path}/[/kept] {LONG[:150]}" in said
    assert (tmp_path / place).exists()


def test_a_training_says_where_its_weights_are(tmp_path, capfd):
    made = migm.training.run.first_console()
    made.print(f"shortcut in {tmp_path / '[/tr]'}, time of every part")
    made.rule("[/tr]")
    assert f"shortcut in {tmp_path / '[/tr]'}, time" in capfd.readouterr().out


SCRIPT = '</script><!--<script>@question@ @data@ @style@ & "<b>"'


def test_pages_hold_what_was_said_as_data():
    html = _page("s", SCRIPT, [])
    assert html.count("<script") == 2
    assert html.count("</script>") == 2
    assert "<!--" not in html.partition("<title>")[2]
    assert "@question@ @data@ @style@" in html
    html = page(SCRIPT, [{"name": SCRIPT}], [SCRIPT])
    data = re.search('<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert data
    assert json.loads(data[1]) == {"studies": [{"name": SCRIPT}], "problems": [SCRIPT]}
    assert html.count("</script>") == 2
    assert html.partition("<script")[0].count("<title>") == 1


def test_cells_stay_cells():
    text = "a|b $c$ ~^\nd"
    assert markdown(["x", text], [[text, "1"]]).splitlines() == [
        r"| x | a\|b $c$ ~^ d |",
        "|---|---:|",
        r"| a\|b $c$ ~^ d | 1 |",
    ]
    assert r"a|b \$c\$ \textasciitilde{}\textasciicircum{} d & 1 \\" in latex(["x", "y"], [[text, "1"]])
    assert comma_separated(["x"], [[text]]) == f'x\n"{text}"\n'
    assert markup.latex("50% & more") == r"50\% \& more"


@pytest.mark.parametrize("text", ["a$b$c", "$", r"$\frac$", "price: 5$ and 6$", r"\$x\$"])
def test_figures_show_dollars(tmp_path, text):
    figure, axes = plt.subplots()
    axes.plot([1, 10, 1000], [0.001, 1, 2], label=text)
    axes.set(title=text, xlabel=text, xscale="log", yscale="log")
    plain_ticks(axes.xaxis, axes.yaxis)
    axes.legend()
    figure.savefig(tmp_path / "x.png")
    labels = [each.get_text() for axis in (axes.xaxis, axes.yaxis) for each in axis.get_ticklabels(which="both")]
    plt.close(figure)
    assert not axes.title.get_parse_math()
    assert any(labels)
    assert not [label for label in labels if "$" in label or "mathdefault" in label]
    assert imread(tmp_path / "x.png").min() == 0
