"""A study measures what is missing, once, and says how."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_parts import naming, study_config

from migm.config.building import build
from migm.config.points import points
from migm.evaluation.results import IDENTITY, identity, read
from migm.evaluation.study import study
from migm.runtime.kinds import CostKind
from migm.sampling.sampler import Sampler

PER_POINT = 6  # seconds, peak memory, FFE, memory of caches, and two metrics of one seed set


def measured(output: Path, assets: Path, *overrides: str, cost: CostKind = True) -> Path:
    cfg, config = study_config(output, assets, "+points.vanilla=[2,6]", "+points.reuse=[[6,2]]", *overrides)
    done = study(points(cfg, config), config, build(config.base))
    done.repeats = 1
    done.run(cost)
    return done.results.path


@pytest.fixture(scope="module")
def whole(assets, tmp_path_factory) -> Path:
    return measured(tmp_path_factory.mktemp("whole"), assets)


def test_every_point_has_time_ffe_and_every_metric(whole):
    records = read(whole)
    assert len(records) == 3 * PER_POINT
    found = {(r["accelerator"], r["num_steps"], r["num_full_steps"], r["metric"]) for r in records}
    costs = ("seconds_per_image/batch10_amortised", "peak_bytes/batch10_amortised", "ffe", "cache_bytes_per_image")
    metrics = (*costs, "fd_cifarnet_20", "class_agreement_20")
    wanted = [("vanilla", 2, 2), ("vanilla", 6, 6), ("reuse", 6, 2)]
    assert found == {(*point, metric) for point in wanted for metric in metrics}
    assert all(isinstance(r["value"], float) for r in records)
    ffe = {(r["accelerator"], r["num_steps"]): r["value"] for r in records if r["metric"] == "ffe"}
    assert ffe["vanilla", 6] == 6
    assert 2 < ffe["reuse", 6] < 3


def test_a_record_says_how_it_was_measured(whole):
    for record in read(whole):
        quality = record["metric"].endswith("_20")
        needed = set(IDENTITY) - (set() if quality else {"seed_set", "reference", "decoder"})
        needed |= {"value", "unit", "higher_is_better", "device", "torch", "migm", "commit", "time"}
        assert needed <= set(record), record["metric"]
        if quality:
            assert (record["n"], record["seed_set"], len(record["reference"])) == (20, 1, 12)
            assert len(record["evalset"]) == 12


def test_costs_that_other_work_cannot_change_are_counted_alone(whole, assets, tmp_path):
    counted = read(measured(tmp_path, assets, cost="counted"))
    metrics = {"ffe", "cache_bytes_per_image", "fd_cifarnet_20", "class_agreement_20"}
    assert {record["metric"] for record in counted} == metrics
    values = {(r["metric"], r["accelerator"], r["num_steps"]): r["value"] for r in read(whole)}
    assert all(values[r["metric"], r["accelerator"], r["num_steps"]] == r["value"] for r in counted)


def test_further_protocols_of_time_and_memory_are_measured_beside_what_is_there(whole, assets, tmp_path):
    path = tmp_path / "tiny_shortcut" / "results.jsonl"
    path.parent.mkdir()
    path.write_bytes(whole.read_bytes())
    measured(tmp_path, assets, "latency=[batch10_amortised,batch1_wall_decode]")
    added = read(path)[3 * PER_POINT :]
    kinds = ("seconds_per_image/batch1_wall_decode", "peak_bytes/batch1_wall_decode")
    assert [r["metric"] for r in added] == [kind for kind in kinds for _ in range(3)]
    assert {(r["n"], r.get("repeats"), r.get("counter")) for r in added} == {
        (1, 1, None),
        (1, None, "allocations in torch.profiler"),
    }
    assert len({r["run"] for r in added[:3]}) == 1
    first = {r["metric"]: r["value"] for r in read(path) if r["metric"].startswith("peak_bytes")}
    assert first["peak_bytes/batch10_amortised"] > 2 * first["peak_bytes/batch1_wall_decode"] > 0


def test_results_without_peaks_get_them_and_no_new_times(whole, assets, tmp_path):
    """What an earlier version wrote."""
    path = tmp_path / "tiny_shortcut" / "results.jsonl"
    path.parent.mkdir()
    lines = [line for line in whole.read_text().splitlines(keepends=True) if '"peak_bytes/' not in line]
    path.write_text("".join(lines))
    measured(tmp_path, assets)
    assert [r["metric"] for r in read(path)[len(lines) :]] == ["peak_bytes/batch10_amortised"] * 3


def test_an_unknown_protocol_is_refused_before_anything_runs(assets, tmp_path):
    with pytest.raises(ValueError, match=naming("latency[0]=batch2_wall")):
        measured(tmp_path, assets, "latency=[batch2_wall]")
    assert not list(tmp_path.iterdir())


def test_a_second_run_adds_nothing(whole, assets):
    before = whole.read_bytes()
    measured(whole.parents[1], assets)
    assert whole.read_bytes() == before


# The last line, all of a point, and on both sides of where times are repeated; each line more is slow.
QUICK = (1, PER_POINT, 15, 16, 3 * PER_POINT)
EVERY = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in range(1, 3 * PER_POINT + 1)]


@pytest.mark.parametrize("lost", EVERY)
def test_after_a_kill_only_what_is_missing_is_measured(whole, assets, tmp_path, lost):
    """`lost` of the last lines were never written, and half of another is left."""
    lines = whole.read_text().splitlines(keepends=True)
    path = tmp_path / "tiny_shortcut" / "results.jsonl"
    path.parent.mkdir()
    path.write_text("".join(lines[:-lost]) + lines[-lost][:40])
    kept = {identity(record) for record in read(path)}
    measured(tmp_path, assets)
    wanted = {identity(record) for record in read(whole)}
    again = read(path)
    assert {identity(record) for record in again} == wanted
    assert again[: len(kept)] == read(whole)[: len(kept)]
    # Times are taken side by side, so those alone are repeated; of everything else nothing is there twice.
    repeated = [record["metric"] for record in again[len(kept) :] if identity(record) in kept]
    assert all(name.startswith("seconds") for name in repeated)
    assert len(repeated) == (18 - lost if lost > 15 else 0)
    values = {identity(r): r["value"] for r in read(whole) if not r["metric"].startswith("seconds")}
    assert {identity(r): r["value"] for r in read(path) if not r["metric"].startswith("seconds")} == values


@pytest.mark.parametrize(
    ("override", "more"),
    [("evalset.seed_sets=[1,2]", 6), ("evalset.num_images=30", 6), ("points.vanilla=[3]", PER_POINT)],
)
def test_a_larger_study_measures_the_difference_only(whole, assets, tmp_path, override, more):
    path = tmp_path / "tiny_shortcut" / "results.jsonl"
    path.parent.mkdir()
    path.write_bytes(whole.read_bytes())
    # A new point is timed beside the others of its run; alone here, it repeats none of them.
    alone = ["~points.reuse"] if override.startswith("points") else []
    measured(tmp_path, assets, *alone, override)
    added = read(path)[3 * PER_POINT :]
    assert len(added) == more
    assert not {identity(r) for r in added} & {identity(r) for r in read(whole)}


def test_quality_does_not_depend_on_the_batch_size(whole, assets, tmp_path):
    other = measured(tmp_path, assets, "evalset.batch_size=7")
    value = {identity(r): r["value"] for r in read(whole) if r["metric"].endswith("_20")}
    found = {identity(r): r["value"] for r in read(other) if r["metric"].endswith("_20")}
    assert found == pytest.approx(value, rel=1e-5)


def test_another_sampler_or_base_is_another_measurement(whole, assets, tmp_path):
    names = {}
    for override in ("sampling.select.temperature=3", "seed=1"):
        cfg, config = study_config(tmp_path, assets, "+points.vanilla=[2]", override)
        done = study(points(cfg, config), config, build(config.base))
        record = done._record(done.samplers[0], "ffe")
        names[override] = (record["base"], record["sampling"])
    first = read(whole)[0]
    assert names["sampling.select.temperature=3"][0] == first["base"]
    assert names["sampling.select.temperature=3"][1] != first["sampling"]
    assert names["seed=1"][0] != first["base"]


def test_previews_show_the_same_seeds_of_every_point(whole):
    folder = whole.parent / "images"
    assert {p.name for p in folder.iterdir()} == {"vanilla_2.png", "vanilla_6.png", "reuse_6,2.png"}
    with Image.open(folder / "vanilla_6.png") as image:  # 20 images of 16 pixels, twice as large, 2 pixels apart
        assert image.size == (10 * 34 + 2, 2 * 34 + 2)


def test_without_points_the_chosen_accelerator_is_the_point(assets, tmp_path, tiny_base):
    cfg, config = study_config(tmp_path, assets, "accelerator=reuse", "sampling.num_full_steps=3")
    assert [Sampler(tiny_base, *chosen).label for chosen in points(cfg, config)] == ["reuse 6,3"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+points.nope=[2]", ["points", "nope"]),
        ("+points.reuse=[[6]]", ["points.reuse[0]=[6]", "N, or [N, B]"]),
        ("+points.reuse=[[6,2,1]]", ["points.reuse[0]=[6, 2, 1]"]),
        ("+points.reuse=[[6,1.5]]", ["points.reuse[0][1]=1.5"]),
        ("+points.reuse=[[6,7]]", ["num_full_steps=7"]),
        ("+points.reuse=[[6,0]]", ["points.reuse[0][1]=0"]),
        ("+points.vanilla=[0]", ["points.vanilla[0]=0"]),
        ("+points.vanilla=[[6,2]]", ["points.vanilla=[6, 2]: B is 2", "sets 6 full steps"]),
        ("+points.ml_cache=[{num_steps: 6, num_full_steps: 4}]", ["points.ml_cache", "B is 4", "sets 2 full steps"]),
        ("+points.reuse=[{num_steps: 6, num_full_steps: x}]", ["points.reuse.num_full_steps=x", "a whole number"]),
        ("+points.reuse=[{num_full_steps: 2}]", ["points.reuse.num_steps=null", "a whole number"]),
        ("+points.teacache=[[6,2]]", ["points.teacache=[6, 2]", "decides while sampling"]),
    ],
)
def test_impossible_points_are_refused_naming_them(assets, tmp_path, override, words):
    with pytest.raises(ValueError, match=naming(*words)):
        points(*study_config(tmp_path, assets, override))


def test_points_leave_the_global_generator_out_of_the_samples(whole, assets, tmp_path):
    torch.manual_seed(99)
    found = {identity(r): r["value"] for r in read(measured(tmp_path, assets)) if r["metric"].endswith("_20")}
    assert found == {identity(r): r["value"] for r in read(whole) if r["metric"].endswith("_20")}
