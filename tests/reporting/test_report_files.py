"""From records to rows, and from rows to files that need no network."""

import csv
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_parts import naming

from migm.reporting.html import study_data
from migm.reporting.pictures import Pictures
from migm.reporting.summary import summarise, table
from migm.reporting.tables import fronts
from migm.reporting.write import write_report
from migm.runtime.errors import UserError
from migm.runtime.pictures import save_grid

ABOUT = {"base": "b", "sampling": "s", "device": "cpu <1>", "torch": "2", "migm": "0", "commit": "c", "predictor": ""}
FD = {("vanilla", 4): [20.0, 22.0, 24.0], ("vanilla", 16): [10.0, 10.5, 11.0], ("shortcut", 16): [11.0, 12.0, 13.0]}


def records() -> list[dict[str, Any]]:
    made = []
    for (name, n), values in FD.items():
        point = {**ABOUT, "accelerator": name, "num_steps": n, "num_full_steps": 4 if name == "shortcut" else n}
        cost = {"higher_is_better": False}
        seconds = 0.001 * point["num_full_steps"]
        made.append({**point, **cost, "metric": "seconds_per_image/batch10_amortised", "value": seconds})
        made.append({**point, **cost, "metric": "ffe", "value": float(point["num_full_steps"])})
        for seed, value in enumerate(values):
            quality = {**point, "seed_set": seed, "reference": "r"}
            made.append({**quality, "metric": "fd_cifarnet_1000", "value": value, "higher_is_better": False})
            agreement = {"metric": "class_agreement_1000", "value": 1 - value / 100, "higher_is_better": True}
            made.append({**quality, **agreement})
    return made


@pytest.fixture
def results(tmp_path) -> Path:
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records()))
    return path


def test_a_row_is_mean_and_sample_deviation_over_the_seed_sets():
    rows = {(row.accelerator, row.num_steps): row for row in summarise(records()).rows}
    assert rows.keys() == FD.keys()
    for key, values in FD.items():
        assert rows[key].mean("fd_cifarnet_1000") == pytest.approx(statistics.fmean(values))
        assert rows[key].deviation("fd_cifarnet_1000") == pytest.approx(statistics.stdev(values))
    assert rows["shortcut", 16].seconds == 0.004
    assert rows["shortcut", 16].ffe == 4


def test_a_single_seed_set_has_no_deviation():
    one = [record for record in records() if record.get("seed_set", 0) == 0]
    assert {row.deviation("fd_cifarnet_1000") for row in summarise(one).rows} == {0.0}


def test_rows_are_vanilla_first_then_by_name_and_steps_whatever_the_order():
    labels = ["vanilla 4", "vanilla 16", "shortcut 16,4"]
    assert [row.label for row in summarise(records()).rows] == labels
    assert [row.label for row in summarise(records()[::-1]).rows] == labels


@pytest.mark.parametrize("key", ["base", "sampling"])
def test_several_bases_or_samplers_are_refused_naming_both(key):
    foreign = {**records()[-1], key: "foreign"}
    with pytest.raises(UserError, match=naming(key, ABOUT[key], "foreign")):
        summarise([*records(), foreign])


def test_the_device_is_that_of_the_times():
    made = [{**r, "device": "timed" if r["metric"].startswith("seconds") else "other"} for r in records()]
    assert "timed" in {r["device"] for r in made}
    assert summarise(made).about["device"] == summarise(made[::-1]).about["device"] == "timed"


def test_no_records_are_refused():
    with pytest.raises(UserError, match="results"):
        summarise([])


def test_an_unknown_baseline_is_refused_naming_the_known_ones(results, tmp_path):
    with pytest.raises(UserError, match=naming("baseline=vanilla 99", "vanilla 16")):
        write_report([results], tmp_path / "report", "vanilla 99")
    assert not (tmp_path / "report").exists()


def test_the_baseline_is_the_vanilla_row_with_the_most_steps(results, tmp_path):
    write_report([results], tmp_path / "report")
    headings, *_ = csv.reader((tmp_path / "report" / "table.csv").read_text().splitlines())
    assert "fd_cifarnet_1000 to vanilla 16" in headings


def test_the_table_compares_with_the_baseline():
    summary = summarise(records())
    headings, cells = table(summary, summary.baseline("vanilla 16"))
    row = dict(zip(headings, cells[2], strict=True))
    assert (row["method"], row["N"], row["B"]) == ("shortcut", "16", "4")
    assert row["fd_cifarnet_1000"] == "12.00 ± 1.00"
    assert row["fd_cifarnet_1000 to vanilla 16"] == "+14.3%"
    assert (row["ms / image"], row["time"], row["FFE"]) == ("4.00", "25.0%", "4.00")


def with_memory() -> list[dict[str, Any]]:
    """Also the memory of the compared protocol, and times and memory of single images of two points."""
    made = records()
    for r in [r for r in made if r["metric"].startswith("seconds")]:
        peak = {**r, "counter": "by hand", "value": 1e6 * r["num_full_steps"]}
        made.append({**peak, "metric": "peak_bytes/batch10_amortised"})
        if r["num_steps"] == 16:
            made.append({**r, "metric": "seconds_per_image/batch1_wall", "value": 3 * r["value"], "device": "late"})
            made.append({**peak, "metric": "peak_bytes/batch1_wall", "value": peak["value"] / 10})
    return made


def test_memory_and_further_times_have_columns_and_fronts_of_their_own():
    """Compared is the protocol that most points have, whichever was measured last."""
    summary = summarise(with_memory())
    assert summary.about["time"] == "batch10_amortised"
    assert (summary.about["device"], summary.about["memory"]) == ("cpu <1>", "by hand")
    headings, cells = table(summary, summary.baseline("vanilla 16"))
    assert headings[-4:] == ["FFE", "peak MB", "ms / image, batch1_wall", "peak MB, batch1_wall"]
    assert [row[-3:] for row in cells] == [["4.00", "", ""], ["16.00", "48.00", "1.60"], ["4.00", "12.00", "0.40"]]
    assert [row.seconds for row in summary.rows] == [0.004, 0.016, 0.004]
    found = {(row[0], row[2]): row[5] for row in fronts(summary)[1] if row[1] == "fd_cifarnet_1000"}
    assert found["shortcut", "peak MB"] == "shortcut 16,4"
    assert found["vanilla", "ms / image, batch1_wall"] == "vanilla 16"


def test_the_page_offers_every_cost_that_was_measured():
    summary = summarise(with_memory())
    data = study_data("s", summary, summary.rows[0], fronts(summary), {}, Pictures())
    shown = ["time", "ffe", "peak MB", "ms / image, batch1_wall", "peak MB, batch1_wall"]
    assert [cost["key"] for cost in data["costs"]] == shown
    assert [[row[key] for key in shown] for row in data["rows"]][1] == [16.0, 16.0, 16.0, 48.0, 1.6]


def test_without_them_there_is_no_column_of_them():
    summary = summarise(records())
    assert table(summary, summary.rows[0])[0][-1] == "FFE"
    assert summary.about["memory"] == ""


@pytest.fixture
def report(results, tmp_path) -> Path:
    for name in ("vanilla_16", "shortcut_16,4"):
        save_grid(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), results.parent / "images" / f"{name}.png", 2)
    write_report([results], tmp_path / "report", "vanilla 16")
    return tmp_path / "report"


def test_markdown_and_csv_hold_the_same_table(report):
    markdown = [line.strip("| ").split(" | ") for line in (report / "table.md").read_text().splitlines()]
    rows = list(csv.reader((report / "table.csv").read_text(encoding="utf-8").splitlines()))
    assert [markdown[0], *markdown[2:]] == rows
    assert len(rows) == 4
    latex = (report / "table.tex").read_text().replace(r"\_", "_").replace(r"\%", "%").replace(r"$\pm$", "±")
    lines = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert [line.removesuffix(r" \\").split(" & ") for line in lines] == rows


def test_there_is_a_figure_for_every_metric_and_cost(report):
    for metric in ("fd_cifarnet_1000", "class_agreement_1000"):
        for cost in ("time", "ffe"):
            with Image.open(report / f"{metric}_by_{cost}.png") as image:
                assert image.size > (400, 300)
                assert len(image.convert("L").getcolors(256) or []) > 2


def test_the_page_needs_no_network_and_shows_everything(report):
    page = (report / "index.html").read_text(encoding="utf-8")
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)  # pictures may spell anything
    assert "http" not in text.lower()
    assert "//" not in text
    assert not re.search(r"(src|href)=(?![\"']?data:)", page)
    assert page.count("data:image/png;base64,") == 2 * 4
    assert "12.00 ± 1.00" in page
    assert r"cpu \u003c1>" in page  # data, in which nothing may look like an element


def test_a_report_again_replaces_the_files(report, results):
    before = (report / "table.md").read_text()
    write_report([results], report, "vanilla 4")
    assert (report / "table.md").read_text() != before
    assert not list(report.glob("*.tmp"))


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (lambda r: "seed_set" not in r, ["quality metric"]),
        (lambda r: "seed_set" not in r or r["num_steps"] == 4, ["fd_cifarnet_1000", "vanilla 16"]),
    ],
    ids=["costs only", "baseline not measured"],
)
def test_an_evaluation_that_was_stopped_early_is_refused_naming_what_lacks(tmp_path, kept, words):
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records() if kept(r)))
    with pytest.raises(UserError, match=naming(*words)):
        write_report([path], tmp_path / "report")
    assert not (tmp_path / "report").exists()
