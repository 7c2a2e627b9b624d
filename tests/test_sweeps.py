"""Sweeps as a user starts them: a table over seeds, failures that stop no other trial, restarts, launchers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_parts import ROOT, same_tensors

import migm.evaluate
import migm.train
from migm.reporting.ablations import ablation_table, differences, write_ablations
from migm.reporting.trials import Trial, grouped, trial_table
from migm.runtime.errors import UserError


def arguments(output: Path, assets: Path, *more: str) -> list[str]:
    quick = ["device=cpu", "trainer.precision=32-true", "~callbacks.progress"]
    return ["-m", "+experiment=tiny_shortcut", f"paths.output_dir={output}", f"paths.assets={assets}", *quick, *more]


def grid(output: Path, assets: Path, *more: str) -> list[str]:
    """Two trainings that end and two whose R divides nothing."""
    swept = ["+sweep=ablation_rd", "seed=0,1", "shortcut.bottleneck_ratio=5,2", "shortcut.depth=1"]
    return arguments(output, assets, *swept, "trainer.max_steps=4", *more)


def kept(folder: Path) -> dict[str, bytes]:
    names = ("*/shortcut.safetensors", "*/results.jsonl", "*/trial.json", "table.md", "trials.csv")
    return {str(path): path.read_bytes() for name in names for path in sorted(folder.glob(name))}


def process(command: str, args: list[str]) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
    line, pipe = [sys.executable, "-m", f"migm.{command}", *args], subprocess.PIPE
    return subprocess.Popen(line, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def finish(started: subprocess.Popen) -> tuple[int, str, str]:
    out, err = started.communicate(timeout=580)
    return started.returncode, out, err


def test_failed_trials_stop_no_other_and_finished_ones_are_skipped(assets, tmp_path, call_main, monkeypatch):
    folder = tmp_path / "tiny_shortcut" / "ablation_rd"
    code, out, err = call_main(migm.train.main, *grid(tmp_path, assets))
    assert code == 1
    assert "4 trials, 0 finished, 2 trajectory stores to collect" in out
    failed = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert [line.split(":")[1].split()[:2] for line in failed] == [
        [f"seed={seed}", "shortcut.bottleneck_ratio=5"] for seed in (0, 1)
    ]
    assert all("must divide the base's 48 channels" in line for line in failed)
    assert "Traceback" not in out + err
    assert {path.parent.name for path in folder.glob("*/trial.json")} == {"r2_d1_seed0", "r2_d1_seed1"}
    table = (folder / "table.md").read_text()
    assert table in out
    assert table.splitlines()[2].startswith("| 2 | 1 | shortcut 6,2 | 2 |")
    assert len(table.splitlines()) == 3
    before, made = kept(folder), []
    monkeypatch.setattr(migm.train, "Training", lambda config, base: made.append(config) or 1 / 0)
    code, out, err = call_main(migm.train.main, *grid(tmp_path, assets))
    assert code == 1
    assert out.count("finished already") == 2
    assert {(config.seed, config.shortcut["bottleneck_ratio"]) for config in made} == {(0, 5), (1, 5)}
    assert "failed: seed=0 shortcut.bottleneck_ratio=5 shortcut.depth=1: division by zero" in err
    assert kept(folder) == before


def test_a_trial_without_cost_is_measured_not_trained_when_cost_is_asked_for(assets, tmp_path, call_main):
    folder = tmp_path / "tiny_shortcut" / "ablation_rd" / "r2_d1_seed0"
    one = arguments(tmp_path, assets, "+sweep=ablation_rd", "seed=0", "shortcut.bottleneck_ratio=2", "shortcut.depth=1")
    costs = {"seconds_per_image", "peak_bytes", "ffe", "cache_bytes_per_image"}

    def measured() -> set[str]:
        records = map(json.loads, (folder / "results.jsonl").read_text().splitlines())
        return {record["metric"].partition("/")[0] for record in records}

    assert call_main(migm.train.main, *one, "trainer.max_steps=4", "cost=false")[0] == 0
    quality, before = measured(), json.loads((folder / "trial.json").read_text())
    assert quality
    assert not quality & costs
    code, out, _ = call_main(migm.train.main, *one, "trainer.max_steps=4")
    assert code == 0
    assert "trained already" in out
    assert measured() == quality | costs
    assert json.loads((folder / "trial.json").read_text())["train_seconds"] == before["train_seconds"] > 0


def test_trials_that_would_share_a_folder_are_refused(assets, tmp_path, call_main):
    first, *rest = grid(tmp_path, assets)
    code, _, err = call_main(migm.train.main, *[first, "+sweep=ablation_rd", *(x for x in rest if "+sweep" not in x)])
    assert code == 2
    assert "error: name=tiny_shortcut is the folder of several trials; put +sweep= behind +experiment=" in err
    assert not (tmp_path / "tiny_shortcut" / "shortcut.safetensors").exists()


def test_a_stop_of_one_trial_stops_all(assets, tmp_path, call_main, monkeypatch):
    started = []

    def stop(config, base):
        started.append(config.seed)
        raise KeyboardInterrupt

    monkeypatch.setattr(migm.train, "Training", stop)
    code, _, err = call_main(migm.train.main, *grid(tmp_path, assets))
    assert code == 130
    assert started == [0]
    assert "the same command goes on from here" in err


def test_a_failed_point_of_an_evaluation_stops_no_other(assets, tmp_path, call_main):
    swept = ["sampling.num_full_steps=7,2", "accelerator=reuse", "points=null"]
    code, _, err = call_main(migm.evaluate.main, *arguments(tmp_path, assets, *swept))
    assert code == 1
    assert [line for line in err.splitlines() if line.startswith("failed: sampling.num_full_steps=7: ")]
    records = [json.loads(x) for x in (tmp_path / "tiny_shortcut" / "results.jsonl").read_text().splitlines()]
    assert {record["num_full_steps"] for record in records} == {2}


def trial(folder: Path, seed: int, quality: float, error: float, seconds: float | None = 10.0, **more: str) -> None:
    """What a finished training of a sweep leaves behind, at one point."""
    chosen = {"seed": str(seed), **{key.replace("__", "."): value for key, value in more.items()}}
    Trial("c", chosen, 100, 1234, error, seconds, 12.0, True).save(folder)
    shared = {"accelerator": "shortcut", "num_steps": 16, "num_full_steps": 4, "base": "b", "sampling": "s"}
    records = [
        {**shared, "metric": "fd", "value": quality, "higher_is_better": False},
        {**shared, "metric": "ffe", "value": 5.0 + quality},
        {**shared, "metric": "seconds_per_image/batch10_amortised", "value": 0.02},
    ]
    (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def sweeps(tmp_path) -> Path:
    """Three seeds of a reference, two of another width, one that has not ended, and another sweep."""
    for seed, quality in enumerate((1.0, 2.0, 4.0)):
        ratio = {"shortcut__bottleneck_ratio": "2", "shortcut__depth": "1"}
        trial(tmp_path / "ablation_rd" / f"r2_d1_seed{seed}", seed, quality, 0.5, **ratio)
    for seed, quality in ((0, 1.5), (2, 4.7)):
        ratio = {"shortcut__bottleneck_ratio": "10", "shortcut__depth": "1"}
        trial(tmp_path / "ablation_rd" / f"r10_d1_seed{seed}", seed, quality, 0.25, None, **ratio)
    trial(tmp_path / "ablation_rd" / "r10_d1_seed1", 1, 9.0, 9.0, shortcut__bottleneck_ratio="10")
    unfinished = tmp_path / "ablation_rd" / "r10_d1_seed1" / "trial.json"
    unfinished.write_text(unfinished.read_text().replace('"finished": true', '"finished": false'))
    trial(tmp_path / "ablation_length" / "steps50_seed0", 0, 0.5, 1.0)
    return tmp_path


def test_the_table_has_means_and_deviations_over_seeds_in_the_order_of_numbers(sweeps):
    keys = ["shortcut.bottleneck_ratio", "shortcut.depth"]
    headings, cells = trial_table(grouped(sweeps / "ablation_rd", keys), keys)
    assert headings[:3] == ["bottleneck_ratio", "depth", "point"]
    assert [dict(zip(headings, row, strict=True)) for row in cells] == [
        {
            "bottleneck_ratio": ratio,
            "depth": "1",
            "point": "shortcut 16,4",
            "seeds": seeds,
            "parameters": "1,234",
            "feature_mse": f"{error} ± 0.0000",
            "fd": fd,
            "ms / image": "20.00 ± 0.00",
            "FFE": ffe,
            "training s": seconds,
        }
        for ratio, seeds, error, fd, ffe, seconds in (
            ("2", "3", "0.5000", "2.333 ± 1.528", "7.33 ± 1.53", "10 ± 0"),
            ("10", "2", "0.2500", "3.100 ± 2.263", "8.10 ± 2.26", ""),
        )
    ]


def test_ablations_compare_the_same_seeds(sweeps, capsys):
    write_ablations(sweeps, ["ablation_rd", "ablation_length", "absent"], "ablation_rd/r2_d1", sweeps / "out")
    table = (sweeps / "out" / "ablations.md").read_text()
    assert table in capsys.readouterr().out
    rows = {line.split("|")[2].strip(): [cell.strip() for cell in line.split("|")] for line in table.splitlines()}
    assert rows["r10_d1"][7:9] == ["-0.25000 ± 0.00000", "+0.600 ± 0.141"]  # of fd 1.5 - 1 and 4.7 - 4
    assert rows["r2_d1 (reference)"][7:9] == ["", ""]
    assert rows["steps50"][7:9] == ["+0.50000", "-0.500"]
    for name in ("rd_fd.png", "rd_feature_mse.png", "length_fd.png", "trials.csv", "ablations.csv"):
        assert (sweeps / "out" / name).stat().st_size > 0


def test_differences_go_by_seed_whatever_the_order(sweeps):
    reference, other = grouped(sweeps / "ablation_rd")
    assert other.values == ("r10_d1",)
    reference.trials.reverse()
    reference.rows.reverse()
    assert differences(other, reference, "fd") == pytest.approx([0.5, 0.7])
    assert ablation_table({"ablation_rd": [other]}, reference)[1][0][1] == "r10_d1"


def test_an_unknown_reference_and_a_damaged_trial_are_refused_by_name(sweeps):
    with pytest.raises(UserError, match=r"reference=ablation_rd/r3 .*ablation_rd/r10_d1"):
        write_ablations(sweeps, ["ablation_rd"], "ablation_rd/r3", sweeps / "out")
    path = sweeps / "ablation_rd" / "r2_d1_seed0" / "trial.json"
    for text in ("{", "[]", '{"format": "migm-trial/1"}', '{"format": "other"}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"r2_d1_seed0.trial\.json"):
            grouped(sweeps / "ablation_rd")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers_run_the_same_trials(assets, tmp_path, launcher):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher")
    code, out, err = finish(process("train", grid(tmp_path, assets, f"+launcher={launcher}")))
    folder = tmp_path / "tiny_shortcut" / "ablation_rd"
    assert code == 1, err
    assert err.count("failed: seed=") == 2
    assert "| 2 | 1 | shortcut 6,2 | 2 |" in out
    assert len(list((tmp_path / "trajectories").glob("*/manifest.jsonl"))) == 2
    alone = tmp_path / "alone"
    assert finish(process("train", grid(alone, assets)))[0] == 1
    for seed in (0, 1):
        name = Path("ablation_rd") / f"r2_d1_seed{seed}" / "shortcut.safetensors"
        assert same_tensors(tmp_path / "tiny_shortcut" / name, alone / "tiny_shortcut" / name)
    before = kept(folder)
    code, out, err = finish(process("train", grid(tmp_path, assets, f"+launcher={launcher}")))
    assert code == 1, err
    assert kept(folder) == before


@pytest.mark.slow
def test_optuna_minimises_latency_and_distance_and_goes_on(assets, tmp_path):
    optuna = pytest.importorskip("optuna")
    choices = ["sampling.num_steps=choice(4,6)", "sampling.num_full_steps=choice(2,3,4,7)", "accelerator=reuse"]
    args = arguments(tmp_path, assets, "+sweep=pareto", *choices, "hydra.sweeper.sampler.seed=1")
    for so_far, more in ((4, 4), (7, 3)):
        _, _, err = finish(process("evaluate", [*args, f"hydra.sweeper.n_trials={more}"]))
        study = optuna.load_study("pareto", f"sqlite:///{tmp_path}/tiny_shortcut/pareto.db")
        assert len(study.trials) == so_far, err
    path = tmp_path / "tiny_shortcut" / "results.jsonl"
    found: dict[tuple[str, int, int], float] = {}
    for record in map(json.loads, path.read_text().splitlines()):
        found[record["metric"].split("/")[0], record["num_steps"], record["num_full_steps"]] = record["value"]
    for each in study.trials:
        n, b = each.params["sampling.num_steps"], each.params["sampling.num_full_steps"]
        if b == 7:
            assert each.state == optuna.trial.TrialState.FAIL
        else:
            assert each.values == [found["seconds_per_image", n, b], found["fd_cifarnet_20", n, b]]


@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_what_is_unfinished(assets, tmp_path):
    args = arguments(tmp_path, assets, "+sweep=ablation_length", "seed=0,1", "trainer.max_steps=10,40")
    folder = tmp_path / "tiny_shortcut" / "ablation_length"
    started, deadline = process("train", args), time.monotonic() + 300
    while not (folder / "steps10_seed0" / "trial.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(started.pid, signal.SIGKILL)
    finish(started)
    code, out, err = finish(process("train", args))
    assert code == 0, err
    assert "4 trials, 4 finished" in out
    rows = (folder / "table.md").read_text().splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["10", "40"]
    assert [row.split("|")[3].strip() for row in rows] == ["2", "2"]
