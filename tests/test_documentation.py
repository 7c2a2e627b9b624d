"""The pages: every command is one that this version accepts, every link and file that they name is there."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from statistics import mean

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from test_config import CONF, ROOTS
from test_experiments import trials
from tiny_parts import ROOT

from migm.__main__ import commands
from migm.config.building import load

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [*PAGES, ROOT / "CHANGELOG.md", *ROOT.glob("*/**/README.md"), *(ROOT / "docs" / "originals").glob("*.md")]
LINKING = sorted({page for page in LINKING if not any(part.startswith(".") for part in page.relative_to(ROOT).parts)})
EXAMPLE = ROOT / "docs" / "add_a_method.md"  # shows files that are not there: test_add_a_method.py makes and runs them
OF_CONFIGS = {**ROOTS, "needs": ROOTS["evaluate"]}


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def text_of(page):
    return page.read_text(encoding="utf-8")


def without_blocks(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def spans(page):
    """What stands between backticks in the running text, on one line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", without_blocks(text_of(page)))]


def blocks(page):
    """The blocks that are in no language."""
    return [
        block for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text_of(page), re.M | re.S) if not language
    ]


def shown(page):
    """Every command line of a page, as a list of words; without comments, with a word for what is to be filled in."""
    lines = [line for block in blocks(page) for line in block.replace("\\\n", " ").splitlines() if not is_tree(line)]
    lines += [span for span in spans(page) if "-m migm." in span and "migm.<command>" not in span]
    short = [span.split() for span in spans(page) if span.split()[0] in ROOTS]
    lines += [f"migm {shlex.join(words)}" for words in short if len(words) > 1 and all("=" in w for w in words[1:])]
    for line in lines:
        words = shlex.split(re.sub(r"<[^<>]*>", "filled_in", line), comments=True)
        while "&&" in words:
            yield words[: words.index("&&")]
            words = words[words.index("&&") + 1 :]
        if words:
            yield words


def is_tree(line):
    return re.match(r"[\w/*.]+/[\w*.]* +\w", line)


COMMANDS = [(page, words) for page in PAGES if page != EXAMPLE for words in shown(page)]


def check(words, monkeypatch):
    """AssertionError, or that of the config, unless the command is one that this checkout accepts."""
    while re.match(r"[A-Z_0-9]+=", words[0]):
        monkeypatch.setenv(*words[0].split("=", 1))
        words = words[1:]
    program, *arguments = words
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", text_of(ROOT / "Makefile"), re.M)
    elif program == "pip":
        extras = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
        assert re.fullmatch(r"(?:\.|migm)\[(\w+)\]", arguments[-1])[1] in extras
    elif program == "wandb":
        assert arguments[0] == "sync"
    elif words[:3] == ["python", "-m", "pytest"]:
        assert all((ROOT / path).is_file() for path in arguments[2:])
    elif program == "migm":
        accepted(arguments[0], arguments[1:])
    else:
        assert program in ("python", "torchrun"), program
        module = arguments.index("-m") + 1
        assert arguments[module].startswith("migm."), words
        accepted(arguments[module].removeprefix("migm."), arguments[module + 1 :])


def accepted(command, arguments):
    assert importlib.util.find_spec(f"migm.{command}")
    assert command in commands(), "an old name, or none"
    if command not in OF_CONFIGS:
        assert (command, arguments) == ("install_scorers", [])
        return
    if any(text.startswith("+launcher=submitit") for text in arguments):
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    if "+sweep=pareto" in arguments:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    root = "evaluate" if command == "needs" else command
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for trial in trials(arguments):
            own = [text for text in trial if not text.startswith("hydra.")]  # read with Hydra's node, below
            load(compose(root, own), OF_CONFIGS[command])
            compose(root, trial, return_hydra_config=True)


@pytest.mark.parametrize(
    ("page", "words"), COMMANDS, ids=[f"{name_of(page)}-{shlex.join(words)}" for page, words in COMMANDS]
)
def test_every_command_is_accepted(page, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    check(words, monkeypatch)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("python -m migm.train +experiment=cifar10_shortcuts", HydraException),
        ("python -m migm.train +experiment=cifar10_shortcut shortcut.bottleneck=4", HydraException),
        ("python -m migm.train -m +experiment=cifar10_shortcut +sweep=ablation", HydraException),
        ("python -m migm.reference", AssertionError),
        ("python -m migm.tunes", AssertionError),
        ("migm report result=[a.jsonl]", HydraException),
        ("make tests", AssertionError),
        ("pip install -e .[sweeps]", AssertionError),
    ],
)
def test_a_command_that_is_wrong_is_found(line, error, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        check(shlex.split(line), monkeypatch)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_run_shows_a_page_and_then_does_the_main_job_by_commands_that_are_accepted(monkeypatch, tmp_path):
    told = subprocess.run(["make", "--dry-run", "run"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    prefix = [".venv/bin/python", "-m"]
    lines = [words for words in map(shlex.split, told.splitlines()) if words[:2] == prefix and words[2] != "pip"]
    assert [words[2] for words in lines] == ["migm.side_by_side", "migm.train"]
    monkeypatch.chdir(tmp_path)
    for words in lines:
        check(["python", *words[1:]], monkeypatch)


def test_no_page_of_commands_is_passed_over():
    """A change of the form of blocks must not empty the list above; docs/add_a_method.md has a test of its own."""
    counts = {name_of(page): sum(page == other for other, _ in COMMANDS) for page in PAGES if page != EXAMPLE}
    without = {"docs/README.md", "docs/python.md", "docs/citing.md"}
    assert {name for name, count in counts.items() if not count} == without
    assert sum(counts.values()) >= 45


@pytest.mark.parametrize("page", LINKING, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for target in re.findall(r"\]\(([^()\s]+)\)", without_blocks(text_of(page))):
        if re.match(r"https?://", target):
            continue
        path, _, heading = target.partition("#")
        leads_to = (page.parent / path).resolve() if path else page
        assert leads_to.exists(), target
        assert ROOT in leads_to.parents, target
        if heading:
            assert heading in headings(leads_to), target


def headings(page):
    """The names that GitHub gives to the headings of a page."""
    found = re.findall(r"^#+ (.*)$", without_blocks(text_of(page)), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", [page for page in PAGES if page != EXAMPLE], ids=name_of)
def test_every_file_named_in_the_text_is_there(page):
    for span in spans(page):
        if re.fullmatch(r"(migm|conf|tests|docs|experiments|examples)/[\w./-]*", span):
            assert (ROOT / span).exists(), span


def test_the_tree_of_the_readme_names_every_room():
    (tree,) = [block for block in blocks(README) if is_tree(block)]
    named = set(re.findall(r"(?:^|; )([\w/]+)/[*. ]", tree, re.M))
    assert all((ROOT / name).is_dir() for name in named), named
    rooms = {f"migm/{path.parent.name}" for path in (ROOT / "migm").glob("*/__init__.py")}
    assert rooms - named <= {"migm/scorers"}  # an old name, for one version
    assert {"conf", "experiments", "tests", "docs", "examples"} <= named


def test_the_table_of_commands_is_complete():
    table = text_of(ROOT / "docs" / "commands.md").split("| command |", 1)[1].split("\n\n", 1)[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, re.M)
    assert sorted(rows) == sorted(commands())


@pytest.mark.parametrize(
    ("page", "heading", "group"), [("methods", "`accelerator=`", "accelerator"), ("metrics", "metric", "metric")]
)
def test_every_name_in_a_table_is_that_of_a_config(page, heading, group):
    table = text_of(ROOT / "docs" / f"{page}.md").split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    cells = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in table.splitlines()[2:]]
    named = [name if not name.startswith("_") else cell[0] + name for cell in cells for name in cell]
    assert len(named) > 10
    assert [name for name in named if not (CONF / group / f"{name}.yaml").is_file()] == []


def linked(page):
    return {(page.parent / target).resolve() for target in re.findall(r"\]\(([^()#\s]+)", text_of(page))}


def test_the_readme_is_short_and_leads_to_an_index_of_every_page():
    text, index = text_of(README), ROOT / "docs" / "README.md"
    assert len(text.split()) <= 1300
    assert len(text.splitlines()) <= 120
    assert {index, ROOT / "CONTRIBUTING.md", ROOT / "docs" / "citing.md"} <= linked(README)
    assert {page for page in PAGES if page.parent == index.parent} - {index} <= linked(index)


def rows(heading):
    """The cells of the rows of README's table whose head begins so."""
    table = text_of(README).split(f"| {heading}", 1)[1].split("\n\n", 1)[0]
    lines = [line for line in table.splitlines()[2:] if line.startswith("|")]
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]


def test_every_base_is_in_the_table_of_models():
    named = []
    for first, *_ in rows("`base=`"):
        for word in re.findall(r"`(\w+)`", first):  # `_small` is the last whole name with another end
            if word[0] != "_":
                whole = word
            named.append(word if word[0] != "_" else whole.rpartition("_")[0] + word)
    assert sorted(named) == sorted(path.stem for path in (CONF / "base").glob("*.yaml"))


def records(path):
    return [json.loads(line) for line in (ROOT / "experiments" / path).read_text().splitlines()]


DEEP = {  # row of README -> method, number of full steps in 32 or fewer, plan
    "vanilla": ("vanilla", 32, "uniform"),
    "TaylorSeer, interval 4, first 3 full": ("taylorseer order 1", 10, "interval 4, first 3"),
    "fewer steps: vanilla 12": ("vanilla", 12, "uniform"),
    "shortcut (32,8), trained for two minutes": ("shortcut R2", 8, "uniform"),
    "fewer steps: vanilla 8": ("vanilla", 8, "uniform"),
    "reuse of the last hidden state (32,8)": ("reuse", 8, "uniform"),
}


def test_the_quality_in_the_readme_is_that_of_the_records():
    found = rows("`cifar10_deep`, N = 32 |")
    assert [row[0] for row in found] == list(DEEP)
    points = records("007-cifar10-deep/points_h200.jsonl")
    whole = mean(r["ms_per_image"] for r in points if (r["method"], r["full_steps"]) == ("vanilla", 32))
    for name, *cells in found:
        method, full, plan = DEEP[name]
        steps = full if method == "vanilla" else 32
        wanted = {"method": method, "full_steps": full, "plan": plan, "N": steps, "num_images": 5000}
        own = [r for r in points if wanted.items() <= r.items()]
        assert own, name
        runs, distance, agreement, ms, time = (float(cell.rstrip("%")) for cell in (c.strip(" *") for c in cells))
        assert runs == full
        assert distance == pytest.approx(mean(r["fd_cifarnet"] for r in own), abs=6e-4)
        assert agreement == pytest.approx(mean(r["class_agreement"] for r in own), abs=6e-4)
        assert ms == pytest.approx(mean(r["ms_per_image"] for r in own), abs=0.012)
        assert time == pytest.approx(100 * mean(r["ms_per_image"] for r in own) / whole, abs=0.6)


def test_the_times_in_the_readme_are_those_of_the_records():
    runs = [r for r in records("020-speed/bench_gpu.jsonl") if r["kind"] == "run" and r["batch_size"] == 1]
    before = records("020-speed/before/h200_original.jsonl")
    found = rows("published shapes, batch 1, H200")
    assert len(found) == 4
    for name, original, plain, eight in found:
        experiment = "dimoo_shortcut" if name.startswith("Lumina-DiMOO") else "maskgit_shortcut"
        model = {"dimoo_shortcut": "dimoo", "maskgit_shortcut": "maskgit512"}[experiment]
        part = re.search(r"(shortcut|vanilla) (.*)", name)[0]
        theirs = re.sub(r"\((\d+),(\d+)\)", r"N=\1 B=\2", part) if model == "dimoo" else f"{part}, batch 1"
        seconds = [r["seconds"] for r in before if r["model"] == model and theirs in r["what"] and r["seconds"]]
        assert min(seconds) == pytest.approx(in_seconds(original), rel=0.005), name
        own = [r for r in runs if (r["name"], r["part"]) == (experiment, re.sub(r"[()]", "", part))]
        for cell, linear in ((plain, False), (eight, True)):
            times = [r["ms_per_image"] / 1000 for r in own if is_variant(r["variant"], linear)]
            assert not cell if linear and not times else in_seconds(cell) == pytest.approx(times[-1], rel=0.005), name


def is_variant(variant, linear):
    return variant == "default" if not linear else "fp8_rowwise" in variant


def in_seconds(cell):
    number, unit = cell.split()
    return float(number) / {"s": 1, "ms": 1000}[unit]
