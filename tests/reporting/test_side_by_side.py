"""The page of the same images by several methods: all images, honest figures, texts as they are, refusals."""

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_commands import refused
from tiny_parts import composed

import migm.generate
import migm.side_by_side
from migm.config.building import load
from migm.config.points import points
from migm.config.roots import SideBySideConfig
from migm.reporting.side_by_side import duration, run

# The draw is flat, since else the random base makes some images twice.
TINY = ["+experiment=tiny_shortcut", "device=cpu", "sampling.draw.inverse_temperature=0.3"]


@pytest.fixture
def show(tmp_path, capfd) -> Callable[..., tuple[str, dict]]:
    """Run what the command runs -> the page and its numbers."""

    def shown(*overrides: str) -> tuple[str, dict]:
        two = ["~points.shortcut", "points.vanilla=[6]", f"folder={tmp_path / 'page'}"]
        cfg = composed("side_by_side", *TINY, *two, *overrides)
        config = load(cfg, SideBySideConfig)
        path = run(config, points(cfg, config))
        assert f"page in {path}" in capfd.readouterr().out
        return path.read_text(), json.loads((path.parent / "side_by_side.json").read_text())

    return shown


def pixels(page: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.array(Image.open(io.BytesIO(base64.b64decode(text)))) for text in found]


def test_the_page_has_the_images_that_generate_makes_and_the_times_of_every_round(show, call_main, tmp_path):
    page, numbers = show("labels=[1,2]", "seeds=[4,5]", "seed=3")
    for name, made in (("vanilla", pixels(page)[:4]), ("reuse", pixels(page)[4:])):
        folder = tmp_path / name
        asked = ["labels=[1,2]", "seeds=[4,5]", "seed=3", f"folder={folder}", f"output={tmp_path / 'grid.png'}"]
        code, _, err = call_main(migm.generate.main, *TINY, f"accelerator={name}", *asked)
        assert code == 0, err
        names = [f"{row:05d}_{seed}_{label}.png" for seed in (4, 5) for row, label in enumerate((1, 2))]
        stored = [np.array(Image.open(folder / each)) for each in names]
        assert all(np.array_equal(a, b) for a, b in zip(made, stored, strict=True))
    vanilla, reuse = numbers["points"]
    assert [len(point["seconds_per_image"]) for point in (vanilla, reuse)] == [4, 4]
    assert (vanilla["speed_up"], vanilla["ffe"], reuse["label"]) == (1, 6, "reuse 6,2")
    assert [(image["input"], image["seed"]) for image in numbers["images"]] == [(1, 4), (2, 4), (1, 5), (2, 5)]
    assert "median of 4 rounds" in page
    assert f"{reuse['speed_up']:.1f}&times;" in page
    assert "2 of 6 steps run the base" in page


def test_one_run_each_is_said_to_be_one_and_images_left_out_are_named(show):
    page, numbers = show("max_seconds=1e-9")
    assert "one run of each method" in page
    assert "rounds" not in page
    assert "1 of 10 images were made within max_seconds=1e-09" in page
    assert len(pixels(page)) == 2
    assert len(numbers["images"]) == 1


def test_texts_are_shown_as_they_are_and_a_second_run_takes_the_place_of_the_first(show):
    first, _ = show("labels=[1]")
    assert "<dt>Known" not in first
    page, _ = show("labels=[2]", "note='a < b & @rows@, <script>'", "name='x<y'")
    assert "<dd>a &lt; b &amp; @rows@, &lt;script&gt;</dd>" in page
    assert "x&lt;y" in page
    assert "label 1" not in page


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["points={vanilla: [6]}"], ["points names 1 to compare", "at least two"]),
        (["points={}"], ["points names 1 to compare"]),
        (["labels=[1]", "prompt=a"], ["labels=[1], prompt=a", "give one of"]),
        (["~points.shortcut", "labels=[10]"], ["10", "0 to 9"]),
        (["max_seconds=0"], ["max_seconds=0"]),
    ],
)
def test_what_cannot_be_compared_is_refused(call_main, tmp_path, overrides, words):
    arguments = [*TINY, f"folder={tmp_path / 'page'}", *overrides]
    refused(call_main(migm.side_by_side.main, *arguments), *words)


def test_a_folder_with_other_files_is_refused(call_main, tmp_path):
    (tmp_path / "index.html").write_text("mine")
    (tmp_path / "letter.txt").write_text("mine")
    outcome = call_main(migm.side_by_side.main, *TINY, "~points.shortcut", f"folder={tmp_path}")
    refused(outcome, f"folder={tmp_path}", "migm did not begin this folder")
    assert Path(tmp_path / "index.html").read_text() == "mine"


def test_times_have_three_digits():
    assert [duration(seconds) for seconds in (9.4512, 0.04567, 0.5)] == ["9.45 s", "45.7 ms", "500 ms"]
