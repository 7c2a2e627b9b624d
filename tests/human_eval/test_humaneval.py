"""The human study kit from export to score, through the page in a real Chromium and through a crowd's CSV."""

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import chromium, opened
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiny_parts import composed, naming

from migm.config.building import load
from migm.config.roots import HumanevalConfig
from migm.humaneval import count, hand_out
from migm.runtime.errors import UserError

PROMPTS = ["a red truck", "<b>a dog</b> & a cat", "a ship"]
SEEDS = (0, 4)


def gallery(folder: Path, shade: int, **changes: Any) -> Path:
    """Images of one colour, with the JSON that `migm.generate folder=` writes and a text that tells the method."""
    folder.mkdir()
    about = PngInfo()
    about.add_text("method", folder.name)
    for index, prompt in enumerate(PROMPTS):
        for seed in SEEDS:
            entry = {"prompt": prompt, "index": index, "seed": seed, "base": "b", "accelerator": folder.name}
            entry |= {"num_steps": 16, "num_full_steps": 4, "run_seed": 0, "width": 8, "height": 8, **changes}
            path = folder / f"{index:05d}_{seed}.json"
            path.write_text(json.dumps(entry))
            Image.new("RGB", (8, 8), (shade, index, seed)).save(path.with_suffix(".png"), pnginfo=about)
    return folder


def config(tmp_path: Path, *overrides: str) -> HumanevalConfig:
    return load(composed("humaneval", f"folder={tmp_path / 'study'}", *overrides), HumanevalConfig)


@pytest.fixture
def exported(tmp_path) -> Path:
    ours, theirs = gallery(tmp_path / "shortcut", 200), gallery(tmp_path / "vanilla", 100)
    hand_out(config(tmp_path, f"method={ours}", f"baseline={theirs}", "url=https://example.org/"))
    return tmp_path / "study"


def key(study: Path) -> dict[str, Any]:
    return json.loads((study / "key.json").read_text())


def rows(study: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((study / "crowd.csv").read_text().splitlines()))


def test_every_pair_is_the_same_prompt_and_seed_with_the_side_that_the_key_says(exported):
    pairs = key(exported)["pairs"]
    assert [row["pair"] for row in rows(exported)] == list(pairs) == [str(n) for n in range(1, 7)]
    seen = set()
    for row in rows(exported):
        sides = {}
        for side in ("left", "right"):
            assert row[f"{side}_image"] == f"https://example.org/{row['pair']}_{side}.png"
            with Image.open(exported / "page" / "images" / f"{row['pair']}_{side}.png") as image:
                sides[side] = np.array(image)[0, 0].tolist()
        shade = {"method": 200, "baseline": 100}[pairs[row["pair"]]["left"]]
        assert (sides["left"][0], sides["right"][0]) == (shade, 300 - shade)
        assert sides["left"][1:] == sides["right"][1:]
        assert row["prompt"] == PROMPTS[sides["left"][1]]
        seen.add(tuple(sides["left"][1:]))
    assert seen == {(index, seed) for index in range(3) for seed in SEEDS}


def test_nothing_that_raters_get_tells_the_method(exported):
    """Neither names nor texts inside the images, which `gallery` wrote."""
    handed = [path for path in [*(exported / "page").rglob("*"), exported / "crowd.csv"] if path.is_file()]
    assert len(handed) == 2 + 12
    for path in handed:
        held = path.read_bytes()
        for word in (b"shortcut", b"vanilla", b"baseline"):
            assert word not in held.lower(), path
            assert word.decode() not in path.name
    assert {pair["left"] for pair in key(exported)["pairs"].values()} == {"method", "baseline"}


def test_sides_and_order_follow_the_seed(tmp_path):
    ours, theirs = gallery(tmp_path / "shortcut", 200), gallery(tmp_path / "vanilla", 100)
    keys = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / f"study_{number}"
        hand_out(config(tmp_path, f"method={ours}", f"baseline={theirs}", f"seed={seed}", f"folder={folder}"))
        keys.append((folder / "key.json").read_text())
    assert keys[0] == keys[1] != keys[2]


def test_an_export_over_other_pairs_is_refused_and_the_key_stays(exported, tmp_path):
    before = (exported / "key.json").read_bytes()
    again = [f"method={tmp_path / 'shortcut'}", f"baseline={tmp_path / 'vanilla'}"]
    hand_out(config(tmp_path, *again))
    with pytest.raises(UserError, match=naming("folder=", "other pairs")):
        hand_out(config(tmp_path, *again, "num_pairs=3"))
    assert (exported / "key.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "overrides", "words"),
    [
        ({"prompt": "another"}, [], ["prompt another"]),
        ({"run_seed": 1}, [], ["run_seed"]),
        ({"width": 16}, [], ["width"]),
        ({}, ["num_pairs=7"], ["num_pairs=7", "1 to 6"]),
        ({}, ["num_pairs=0"], ["num_pairs=0"]),
        ({}, ["baseline=null"], ["baseline=None"]),
    ],
)
def test_images_that_are_no_pairs_are_refused(tmp_path, changes, overrides, words):
    ours, theirs = gallery(tmp_path / "shortcut", 200, **changes), gallery(tmp_path / "vanilla", 100)
    with pytest.raises(UserError, match=naming(*words)):
        hand_out(config(tmp_path, f"method={ours}", f"baseline={theirs}", *overrides))
    assert not (tmp_path / "study").exists()


def test_images_in_one_folder_alone_are_refused(tmp_path):
    ours, theirs = gallery(tmp_path / "shortcut", 200), gallery(tmp_path / "vanilla", 100)
    (theirs / "00002_4.json").unlink()
    with pytest.raises(UserError, match=naming("1 images", "input 2 and seed 4")):
        hand_out(config(tmp_path, f"method={ours}", f"baseline={theirs}"))


def test_simulated_votes_of_a_known_preference_come_back_as_rate_and_interval(exported, tmp_path, capsys):
    """Forty raters who prefer the method in 70% of decisions, written as a crowd platform would."""
    source, lines = random.Random(3), ["WorkerId,Input.study,Input.pair,Answer.choice"]
    left, wins = {name: pair["left"] == "method" for name, pair in key(exported)["pairs"].items()}, 0
    for rater in range(40):
        for row in rows(exported):
            better = source.random() < 0.7
            wins += better
            choice = "left" if better == left[row["pair"]] else "right"
            lines.append(f"w{rater},{row['study']},{row['pair']},{choice}")
    (tmp_path / "crowd_votes.csv").write_text("\n".join(lines))
    count(config(tmp_path, f"votes=[{tmp_path / 'crowd_votes.csv'}]"))
    found = json.loads((exported / "score.json").read_text())
    assert (found["wins"], found["losses"]) == (wins, 240 - wins)
    assert found["win_rate"] == wins / 240 == pytest.approx(0.7, abs=0.07)
    for interval in (found["wilson"], found["over_pairs"]):
        assert interval[0] < 0.7 < interval[1]
        assert interval[1] - interval[0] < 0.2
    assert abs(found["alpha"]) < 0.1  # every rater decided by chance
    assert f"win rate {wins / 240:.1%}: {wins} of 240" in capsys.readouterr().out


def test_votes_without_an_export_are_refused(tmp_path):
    (tmp_path / "v.csv").write_text("study,pair,rater,choice\n")
    with pytest.raises(FileNotFoundError, match=naming("key.json", "export pairs first")):
        count(config(tmp_path, f"votes=[{tmp_path / 'v.csv'}]"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser, exported) -> Iterator[Any]:
    with opened(browser, exported / "page" / "index.html") as shown:
        yield shown


def begin(page: Any, rater: str) -> None:
    page.fill("#rater", rater)
    page.keyboard.press("Enter")


def shown_pair(page: Any) -> str:
    return page.get_attribute("#left img", "src").split("/")[1].split("_")[0]


def saved(page: Any, path: Path) -> Path:
    with page.expect_download() as download:
        page.locator(".save:visible").click()
    download.value.save_as(path)
    return path


def test_votes_cast_on_the_page_come_back_exactly(page, exported, tmp_path):
    """A rater who prefers the method but on one pair, with a tie on another; clicks and keys."""
    begin(page, 'Anna "the eye", 1')
    left = {name: pair["left"] == "method" for name, pair in key(exported)["pairs"].items()}
    order = []
    for place in range(6):
        name = shown_pair(page)
        assert page.locator("#prompt").inner_text() == next(r["prompt"] for r in rows(exported) if r["pair"] == name)
        assert page.locator("#right img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 8
        order.append(name)
        if place == 0:
            page.click("#tie")
        elif place % 2:
            page.keyboard.press("ArrowLeft" if left[name] else "ArrowRight")
        else:
            page.click("#left" if left[name] == (place != 4) else "#right")
    assert sorted(order) == list(left)
    assert page.locator("#end").is_visible()
    path = saved(page, tmp_path / "anna.csv")
    count(config(tmp_path, f"votes=[{path}]"))
    found = json.loads((exported / "score.json").read_text())
    assert (found["wins"], found["losses"], found["ties"], found["raters"]) == (4, 1, 1, 1)
    assert found["problems"] == []


def test_a_vote_is_changed_by_going_back_and_kept_over_a_reload(page, exported, tmp_path):
    begin(page, "ben")
    first = shown_pair(page)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Backspace")
    page.click("#back")
    assert shown_pair(page) == first
    assert page.locator("#left").get_attribute("class") == "chosen"
    page.keyboard.press("ArrowRight")
    page.reload()
    begin(page, "ben")
    assert page.locator("#place").inner_text() == "3 of 6"
    lines = list(csv.DictReader(saved(page, tmp_path / "ben.csv").read_text().splitlines()))
    assert [(line["rater"], line["choice"]) for line in lines] == [("ben", "right"), ("ben", "tie")]
    assert lines[0]["pair"] == first


def test_raters_see_the_pairs_in_orders_of_their_own(page):
    orders = {}
    for rater in ("anna", "ben", "carl"):
        page.reload()
        begin(page, rater)
        orders[rater] = []
        for _ in range(6):
            orders[rater].append(shown_pair(page))
            page.keyboard.press("ArrowDown")
    assert len({tuple(order) for order in orders.values()}) == 3
