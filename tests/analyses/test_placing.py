"""The command that places full steps: what it writes, keeps and refuses, and evaluation with what it wrote."""

import json
import math

import pytest
import torch
from PIL import Image

import migm.evaluate
import migm.place
from migm.accelerators.placement import error_of
from migm.accelerators.refresh import Uniform
from migm.analyses import placing
from migm.analyses.plans import Plans
from migm.analyses.segments import segments
from migm.evaluation.results import read
from migm.runtime.jsonl import read_lines

TINY = ["+experiment=tiny_shortcut", "device=cpu", "accelerator=taylorseer_placed"]
FEW = ["place.num_images=4", "place.batch_size=2"]
N = 6


@pytest.fixture
def place(call_main, tmp_path, monkeypatch):
    """Run the command in a folder of its own -> what it printed, which is an error if it should fail."""

    def run(*overrides, folder="out", fails=False, figure=False):
        if not figure:
            monkeypatch.setattr(placing, "draw", lambda *_: None)  # takes most of the time
        where = f"paths.output_dir={tmp_path / folder}"
        code, out, err = call_main(migm.place.main, *TINY, *FEW, where, *overrides)
        assert (code != 0) == fails, out + err
        return err if fails else out

    return run


@pytest.fixture
def files(tmp_path):
    return lambda folder="out": tmp_path / folder / "tiny_shortcut"


def test_the_command_writes_plans_errors_and_a_figure(place, files):
    out = place(figure=True)
    path = files() / "placement_taylorseer_n6.json"
    assert str(path) in out
    content = json.loads(path.read_text())
    lines = read_lines(path.with_suffix(".jsonl"))
    assert [line["image"] for line in lines[1:]] == list(range(content["first_image"], content["first_image"] + 4))
    with Image.open(path.with_suffix(".png")) as image:
        assert len(image.convert("RGB").getcolors(10**6)) > 50
    assert content["predictor"]["identity"] == "Forecast(rule=Taylor(max_order=1))"
    assert (content["memory"], content["max_gap"], content["num_steps"]) == (2, 5, N)
    plans = {(plan["num_full_steps"], plan["first"]): plan for plan in content["plans"]}
    assert set(plans) == {(b, first) for first in (1, 2, 3) for b in range(first, N + 1)}
    every = segments(N, 2, 5)
    means = torch.tensor([line["kl_revealed"] for line in lines[1:]]).double().mean(0).tolist()
    errors: dict = {}
    for segment, value in zip(every, means, strict=True):
        errors.setdefault(segment.history, []).append(value)
    for (b, first), plan in plans.items():
        assert plan["steps"][:first] == list(range(first))
        assert plan["error"] == pytest.approx(error_of(errors, plan["steps"], N, 2), rel=1e-3)
        assert plan["uniform"] == pytest.approx(error_of(errors, Uniform(b).steps(N), N, 2), rel=1e-3)
        assert plan["error"] <= plan["uniform"] + 1e-9 or first > 1
        assert plan["held_out"] >= plan["error"] - 1e-9
        assert plan["interval"] is None or plan["interval"] >= plans[b, 1]["error"] - 1e-9
    written = [value for values in content["errors"]["kl_revealed"].values() for value in values]
    assert written == pytest.approx(means, rel=1e-3)
    assert f"{plans[3, 1]['error']:.4g}" in out


def test_other_plans_need_no_measuring_again_and_more_images_only_themselves(place, files, monkeypatch):
    place("place.num_images=2")
    table = files() / "placement_taylorseer_n6.jsonl"
    first = table.read_text()
    out = place("place.num_images=3")
    assert table.read_text().startswith(first)
    assert len(read_lines(table)) == 4
    assert f"{len(segments(N, 2, 5))}/{len(segments(N, 2, 5))} predictions" in out

    def never(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(placing, "SegmentWalk", never)
    chosen = ["place.num_full_steps=[3]", "place.first=[1]", "place.total=max", "place.error=kl_masked"]
    place("place.num_images=3", *chosen)
    content = json.loads(table.with_suffix(".json").read_text())
    assert [(plan["num_full_steps"], plan["first"]) for plan in content["plans"]] == [(3, 1)]
    assert (content["total"], content["error"]) == ("max", "kl_masked")


def test_two_runs_write_the_same(place, files):
    for folder, batch in (("a", 2), ("b", 2)):
        place(f"place.batch_size={batch}", folder=folder)
    for name in ("placement_taylorseer_n6.json", "placement_taylorseer_n6.jsonl"):
        assert (files("a") / name).read_bytes() == (files("b") / name).read_bytes()


def test_what_a_stop_left_is_gone_on_with(place, files):
    place(folder="whole")
    place("place.num_images=2", folder="part")
    table = files("part") / "placement_taylorseer_n6.jsonl"
    table.write_text(table.read_text() + '{"image": 2, "kl_rev')  # cut off by a kill
    place(folder="part")
    assert table.read_bytes() == (files("whole") / table.name).read_bytes()


def test_evaluation_runs_the_placed_steps_and_records_them(place, files, call_main, tmp_path):
    place()
    points = (
        "points={taylorseer_placed: [[6,2],[6,3],{num_steps: 6, num_full_steps: 3, policy.first: 2}], vanilla: [6]}"
    )
    fixed = ["metric=[none]", "cost=counted", "evalset.num_images=4", "evalset.batch_size=2"]
    where = f"paths.output_dir={tmp_path / 'out'}"
    code, _, err = call_main(migm.evaluate.main, *TINY[:2], where, *fixed, points)
    assert code == 0, err
    plans = json.loads((files() / "placement_taylorseer_n6.json").read_text())["plans"]
    steps = {(plan["num_full_steps"], plan["first"]): plan["steps"] for plan in plans}
    records = [r for r in read(files() / "results.jsonl") if r["accelerator"] == "taylorseer_placed"]
    assert {(r["num_full_steps"], r["settings"]) for r in records} == {
        (b, f"Placed(steps=[{', '.join(map(str, steps[b, first]))}]), Forecast(rule=Taylor(max_order=1))")
        for b, first in ((2, 1), (3, 1), (3, 2))
    }


def test_evaluation_without_a_file_says_how_it_is_made(call_main, tmp_path):
    where = f"paths.output_dir={tmp_path}"
    code, _, err = call_main(
        migm.evaluate.main, *TINY[:2], where, "points={taylorseer_placed: [[6,2]]}", "metric=[none]"
    )
    assert code == 2
    assert f"python -m migm.place +experiment=tiny_shortcut device=cpu {where} accelerator=taylorseer_placed" in err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["accelerator=vanilla"], ["accelerator=vanilla", "nothing to place"]),
        (["accelerator=ml_cache"], ["accelerator=ml_cache", "values of layers"]),
        (["sampling.num_steps=1"], ["sampling.num_steps=1", "nothing to place"]),
        (["place.num_full_steps=[2,7]"], ["place.num_full_steps=[2, 7]", "from 1 to 6"]),
        (
            ["place.max_gap=1", "place.num_full_steps=[2]"],
            ["place.num_full_steps=[2]", "from 3 to 6", "place.max_gap=1"],
        ),
        (["place.num_full_steps=[2]"], ["place.first=[1, 2, 3]", "place.num_full_steps"]),
        (["place.error=kl"], ["place.error=kl", "kl_masked"]),
        (["place.total=mean"], ["place.total=mean", "sum"]),
        (["place.num_images=0"], ["place.num_images=0", "at least 1"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(place, files, overrides, words):
    err = place(*overrides, fails=True)
    assert all(word in err for word in words), err
    assert err.count("\n") == 1
    assert not files().exists()


def test_other_errors_and_foreign_files_stay(place, files):
    place()
    table = files() / "placement_taylorseer_n6.jsonl"
    before = table.read_bytes()
    err = place("place.seed=5", fails=True)
    assert "seed=7701, this is 5" in err
    err = place("accelerator.predictor.rule.max_order=0", fails=True)
    assert "max_order" in err
    assert table.read_bytes() == before
    output = table.with_suffix(".json")
    output.write_text("mine\n")
    err = place(fails=True)
    assert f"place.output={output} is there" in err
    assert output.read_text() == "mine\n"
    table.write_text('{"mine": 1}\n')
    output.unlink()
    assert "no table of segment errors" in place(fails=True)
    assert table.read_text() == '{"mine": 1}\n'


def test_a_shorter_longest_gap_leaves_out_what_needs_more(place, files):
    place("place.max_gap=1", "accelerator=reuse")
    content = json.loads((files() / "placement_reuse_n6.json").read_text())
    assert min(plan["num_full_steps"] for plan in content["plans"]) == 3
    assert all(len(values) <= 1 for values in content["errors"]["error"].values())


def test_plans_chosen_on_one_half_are_judged_by_the_other():
    """Each half has an error that the other has not: a plan that avoids one's own meets the other's."""
    every = segments(N, 1, N - 1)
    cheap = torch.zeros(2, len(every), dtype=torch.float64)
    for i, segment in enumerate(every):
        cheap[0, i], cheap[1, i] = float(segment.step == 2), float(segment.step == 4)
    (row,) = Plans(cheap, N, 1, N - 1, "sum").rows([2], 1)
    assert row["error"] == pytest.approx(0.5)
    assert row["held_out"] == pytest.approx(1.0)
    (alone,) = Plans(cheap[:1], N, 1, N - 1, "sum").rows([2], 1)
    assert (alone["steps"], alone["error"], alone["held_out"]) == ([0, 2], 0.0, None)
    assert math.isnan(float(Plans(cheap, N, 1, N - 1, "sum").map()[5, 0]))
    assert Plans(cheap, N, 1, N - 1, "sum").map()[0, 1] == pytest.approx(0.5)
