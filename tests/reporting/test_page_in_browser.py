"""The report's page in a real Chromium: it renders, logs no error, loads nothing, and its controls work."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browsing import chromium, opened
from tiny_parts import ROOT

from migm.reporting.write import write_report
from migm.runtime.pictures import save_grid

BASE = {"higher_is_better": False, "base": "b", "sampling": "s", "inputs": "10 classes", "device": "cpu", "torch": "2"}
FD = {
    ("vanilla", 4): [20.0, 22.0],
    ("vanilla", 16): [10.0, 11.0],
    ("shortcut", 16): [12.0, 13.0],
    ("reuse", 16): [15.0, 15.0],
}
LABELS = ["vanilla 4", "vanilla 16", "reuse 16,4", "shortcut 16,4"]  # as the table sorts them


def records(base: str) -> Iterator[dict[str, Any]]:
    for (method, n), values in FD.items():
        b = 4 if method != "vanilla" else n
        point = {**BASE, "base": base, "accelerator": method, "num_steps": n, "num_full_steps": b}
        seconds = 0.001 * b + (0.002 if method == "shortcut" else 0)
        yield {**point, "metric": "seconds_per_image/batch10_amortised", "value": seconds}
        yield {**point, "metric": "ffe", "value": float(b)}
        for seed_set, value in enumerate(values):
            quality = {**point, "seed_set": seed_set, "reference": "r"}
            yield {**quality, "metric": "fd_1000", "value": value}
            yield {**quality, "metric": "agreement", "value": 1 - value / 100, "higher_is_better": True}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """Two studies, of which the first has images, and a damaged line in a file whose name is markup."""
    folder = tmp_path_factory.mktemp("report")
    first, second = folder / "<b>first" / "results.jsonl", folder / "second" / "results.jsonl"
    for path, base in ((first, "b"), (second, "other")):
        path.parent.mkdir()
        path.write_text("".join(json.dumps(record) + "\n" for record in records(base)))
    first.write_text(first.read_text() + "{half\n")
    for shade, label in enumerate(LABELS):
        images = torch.full((3, 3, 8, 8), 60 * shade, dtype=torch.uint8)
        path = first.parent / "images" / f"{label.replace(' ', '_')}.png"
        save_grid(images, path, 2, captions=["a cat", "</script><b>dog", "a frog"])
    return write_report([first, second], folder / "report", "vanilla 16")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser, report) -> Iterator[Any]:
    with opened(browser, report) as shown:
        yield shown


def column(page: Any, number: int) -> list[str]:
    return page.locator(f"#table tbody td:nth-child({number})").all_text_contents()


def test_it_draws_every_point_with_its_error_bar_and_the_front(page):
    assert page.locator("#chart .mark").count() == len(FD)
    assert page.locator("#chart .error").count() == len(FD) - 1  # reuse has no deviation
    assert page.locator("#chart .name").all_text_contents() == ["16,4", "16,4", "16"]  # of the front: not vanilla 4
    assert "fd_1000 (lower is better)" in page.locator("#chart").inner_text()


def test_metric_cost_and_scale_are_chosen(page):
    before = page.locator("#chart svg").inner_html()
    page.select_option("#metric", "agreement")
    assert "agreement (higher is better)" in page.locator("#chart").inner_text()
    page.select_option("#cost", "ffe")
    assert "FFE (full-forward equivalents)" in page.locator("#chart").inner_text()
    assert page.locator("#fronts-of").inner_text() == "agreement against FFE"
    logarithmic = page.locator("#chart svg").inner_html()
    page.uncheck("#log")
    assert page.locator("#chart svg").inner_html() not in (before, logarithmic)


def test_a_method_is_hidden_and_shown_again(page):
    page.click("#legend >> text=vanilla")
    assert page.locator("#chart .mark").count() == 2
    page.click("#legend >> text=vanilla")
    assert page.locator("#chart .mark").count() == 4
    for method in ("vanilla", "reuse", "shortcut"):
        page.click(f"#legend >> text={method}")
    assert "Nothing of this" in page.locator("#chart").inner_text()


def test_a_mark_tells_its_values_and_chooses_its_row(page):
    mark = page.locator('#chart .mark[data-label="shortcut 16,4"]')
    mark.hover()
    tip = page.locator("#tip").inner_text()
    for words in (
        "shortcut 16,4",
        "fd_1000: 12.50 ± 0.71",
        "+2.00 against vanilla 16",
        "6.00 ms per image",
        "2.67\u00d7 as fast",
    ):
        assert words in tip
    mark.click()
    assert page.locator("#table tr.chosen").get_attribute("data-label") == "shortcut 16,4"
    assert page.locator("#chart .mark.chosen").get_attribute("data-label") == "shortcut 16,4"


def test_headings_sort_by_number_both_ways(page):
    assert column(page, 4) == ["21.00 ± 1.41", "10.50 ± 0.71", "15.00 ± 0.00", "12.50 ± 0.71"]
    page.click("#table th:nth-child(4)")
    assert [text[:5] for text in column(page, 4)] == ["10.50", "12.50", "15.00", "21.00"]
    page.click("#table th:nth-child(4)")
    assert [text[:5] for text in column(page, 4)] == ["21.00", "15.00", "12.50", "10.50"]
    assert page.locator("#table th[aria-sort=descending]").inner_text() == "fd_1000"


def test_differences_to_any_baseline(page):
    assert column(page, 8) == ["4.00\u00d7", "1.00\u00d7", "4.00\u00d7", "2.67\u00d7"]
    page.select_option("#shown", "deltas")
    assert column(page, 4) == ["+10.50 ± 1.58", "+0.000", "+4.50 ± 0.71", "+2.00 ± 1.00"]
    assert page.locator("#table td.bad").count() == 6  # both metrics of all but the baseline
    page.select_option("#baseline", "reuse 16,4")
    assert column(page, 4) == ["+6.00 ± 1.41", "\u22124.50 ± 0.71", "+0.000", "\u22122.50 ± 0.71"]
    assert page.locator("#table tr.base").get_attribute("data-label") == "reuse 16,4"
    assert page.locator("#table td.good").count() == 4


@pytest.mark.parametrize(("form", "file"), [("markdown", "table.md"), ("latex", "table.tex"), ("csv", "table.csv")])
def test_tables_are_copied(page, report, form, file):
    page.click(f"[data-copy={form}]")
    page.wait_for_selector(f"[data-copy={form}]:text-is('copied')")
    assert page.evaluate("navigator.clipboard.readText()") == (report.parent / "1" / file).read_text()


def test_images_of_the_same_seeds_stand_in_columns_and_methods_are_switched(page):
    assert page.locator("#grid .line").count() == len(LABELS)
    assert page.locator("#grid .line b").all_text_contents() == LABELS
    assert page.locator("#grid img").count() == 3 * len(LABELS)
    assert page.locator("#grid img").first.evaluate("image => [image.naturalWidth, image.complete]") == [8, True]
    page.click("#methods >> text=reuse 16,4")
    assert page.locator("#grid .line b").all_text_contents() == [x for x in LABELS if x != "reuse 16,4"]


def test_an_image_is_enlarged_beside_the_baseline_and_keys_move_on(page):
    sources = page.locator("#grid .line:nth-child(4) img").evaluate_all("images => images.map(image => image.src)")
    baseline = page.locator("#grid .line:nth-child(2) img").evaluate_all("images => images.map(image => image.src)")
    page.locator("#grid .line:nth-child(4) button").nth(1).click()
    state = "[$('large').open, $('caption').textContent, $('left').src, $('right').src]"
    assert page.evaluate(state) == [True, "image 1: </script><b>dog", baseline[1], sources[1]]
    page.keyboard.press("ArrowRight")
    assert page.evaluate(state) == [True, "image 2: a frog", baseline[2], sources[2]]
    page.click("#next")
    assert page.evaluate(state) == [True, "image 0: a cat", baseline[0], sources[0]]
    page.keyboard.press("ArrowUp")
    assert page.input_value("#right-method") == "reuse 16,4"
    page.select_option("#left-method", "shortcut 16,4")
    page.locator("#strip button").nth(1).click()
    assert page.evaluate(state) == [True, "image 0: a cat", sources[0], baseline[0]]
    page.keyboard.press("Escape")
    assert not page.evaluate("$('large').open")


def test_what_is_wrong_with_the_files_is_shown_as_text(page, report):
    assert page.locator("#problems summary").inner_text() == "1 thing to know about the results files"
    page.click("#problems summary")
    shown = page.locator("#problems li").inner_text()
    assert shown == (report.parent / "problems.txt").read_text().strip()
    assert "<b>first/results.jsonl, line 25" in shown
    assert page.locator("#problems b").count() == 0


def test_another_study_replaces_everything(page):
    assert page.locator("#studies button").all_text_contents() == ["<b>first (10 classes)", "second (10 classes)"]
    page.locator("#studies button").nth(1).click()
    assert page.locator("#facts").inner_text().startswith("base other")
    assert page.locator("#pictures").is_hidden()
    assert page.locator("#chart .mark").count() == len(FD)


def test_the_committed_example_opens(browser):
    with opened(browser, ROOT / "experiments" / "report.html") as page:
        assert page.locator("#chart .mark").count() == 29
        assert page.locator("#chart .error").count() == 29
        page.locator("#studies button").nth(1).click()  # points of one method that differ in their settings
        assert page.locator("#chart .mark").count() == 41
        assert page.locator("#grid img").count() == 8 * 20
        methods = column(page, 1)
        assert len(set(zip(methods, column(page, 2), column(page, 3), strict=True))) == 41
        assert "foca interval=4 first_enhance=2 fixed_step=True" in methods
        assert not [name for name in page.locator("#chart .name").all_text_contents() if "=" in name]
        page.locator("#studies button").nth(2).click()
        assert page.locator("#grid img").count() == 5 * 20


def test_it_fits_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
