"""The commands `calibrate` and `plan`, and `evaluate` without times."""

import pytest
from tiny_parts import composed

import migm.calibrate
import migm.evaluate
import migm.plan
from migm.accelerators.calibration import Calibration
from migm.config.building import build, load
from migm.config.points import points
from migm.config.roots import EvaluateConfig, PlanConfig
from migm.evaluation.study import study
from migm.plan import planned


@pytest.fixture
def call(call_main, monkeypatch, tmp_path):
    """Run a command of the tiny experiment inside this process -> exit code, output, errors."""
    monkeypatch.setenv("COLUMNS", "200")
    shared = ["+experiment=tiny_shortcut", f"paths.output_dir={tmp_path}", "device=cpu"]
    return lambda main, *overrides: call_main(main, *shared, *overrides)


def test_calibrate_writes_what_l2p_and_teacache_read(call, tmp_path):
    code, out, _ = call(
        migm.calibrate.main, "num_images=5", "batch_size=2", "sampling.num_steps=4", "sampling.num_full_steps=2"
    )
    assert code == 0
    assert "calibrated on 5 images" in out
    overrides = ["+experiment=tiny_shortcut", f"paths.output_dir={tmp_path}", "device=cpu", "metric=[none]"]
    given = [
        "+points.l2p=[[4,2]]",
        "+points.teacache=[4]",
        "~points.shortcut",
        "evalset.num_images=4",
        "evalset.batch_size=2",
    ]
    cfg = composed("evaluate", *overrides, *given)
    config = load(cfg, EvaluateConfig)
    base = build(config.base)
    known = Calibration.load(tmp_path / "tiny_shortcut" / "calibration_n4.safetensors", base, 4, "calibration")
    assert known.gram.shape == (4, 4)
    assert (known.gram == known.gram.T).all()
    done = study(points(cfg, config), config, base)
    done.run()
    found = {r["accelerator"]: r["predictor"] for r in done.results.records if r["metric"] == "ffe"}
    assert found["l2p"] == found["teacache"] == known.fingerprint()
    assert found["vanilla"] == ""


def test_a_method_whose_calibration_is_missing_says_how_to_make_it(call):
    code, _, err = call(migm.evaluate.main, "points=null", "accelerator=l2p", "metric=[none]")
    assert code == 2
    assert "accelerator.predictor.rule.calibration=" in err
    assert "python -m migm.calibrate" in err


def test_without_cost_only_quality_is_measured(tmp_path):
    overrides = ["+experiment=tiny_shortcut", f"paths.output_dir={tmp_path}", "device=cpu", "~points.shortcut"]
    cfg = composed(
        "evaluate", *overrides, "metric=[none]", "cost=false", "evalset.num_images=2", "evalset.batch_size=2"
    )
    config = load(cfg, EvaluateConfig)
    done = study(points(cfg, config), config, build(config.base))
    done.run(cost=config.cost)
    assert done.results.records == []


@pytest.mark.parametrize(
    ("point", "row"),
    [
        ("vanilla=[64]", ["vanilla 64", "all", "64", "23.10", "1.00"]),
        ("shortcut=[[64,9]]", ["shortcut 64,9", "0 7 14 21 28 36 43 50 57", "9", "4.00", "5.77"]),
        ("teacache=[64]", ["teacache 64", "decided while sampling", "", "", ""]),
        (
            "taylorseer=[{num_steps: 12, policy.interval: 8}]",
            ["taylorseer 12,4 interval=8", "0 1 2 10", "4", "1.55", "2.79"],
        ),
    ],
)
def test_a_plan_says_when_the_base_runs_and_how_long_that_takes(point, row):
    cfg = composed("plan", f"+points.{point}", "full=0.3609375", "cheap=0.038")
    config = load(cfg, PlanConfig)
    (found,) = points(cfg, config)
    assert planned(found, config.full, config.cheap) == row


def test_plan_prints_a_table_and_needs_nothing_built(call):
    code, out, _ = call(migm.plan.main, "base=dimoo", "full=2")
    assert code == 0
    assert "speed-up" in out
    assert "reuse 6,2" in out
    assert "memory: transformer " in out


def test_plan_refuses_linears_that_the_base_cannot_have(call):
    code, _, err = call(migm.plan.main, "base.linear=fp8_rowwise", "base.transformer.channels=40")
    assert code == 2
    assert "base.linear=fp8_rowwise" in err


@pytest.mark.parametrize("override", ["full=0", "cheap=-1"])
def test_impossible_times_are_refused_by_key(call, override):
    code, _, err = call(migm.plan.main, override)
    assert code == 2
    assert override in err
