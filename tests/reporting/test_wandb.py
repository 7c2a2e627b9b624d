"""What W&B would be sent: read from the logs of offline runs, and the dashboard against a golden file."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from offline_runs import offline_runs
from PIL import Image
from tiny_parts import composed, naming

from migm.config.building import load
from migm.config.roots import ReportConfig, TrainConfig
from migm.reporting.summary import summarise
from migm.reporting.wandb import Tracker, cost_keys, spec, tracker, workspace
from migm.reporting.write import write_report
from migm.runtime.errors import UserError
from migm.runtime.pictures import save_grid

GOLDEN = Path(__file__).parent / "dashboard.json"
ABOUT = {"base": "b", "sampling": "s", "device": "cpu", "torch": "2", "migm": "0", "commit": "c", "reference": "r"}
FD = {("vanilla", 16, 16): [10.0, 12.0], ("shortcut", 16, 4): [11.0, 14.0]}


def records() -> list[dict[str, Any]]:
    made = []
    for (name, n, b), values in FD.items():
        point = {**ABOUT, "accelerator": name, "num_steps": n, "num_full_steps": b, "higher_is_better": False}
        costs = {"seconds_per_image/batch10_amortised": 0.001 * b, "seconds_per_image/batch1_wall": 0.01 * b}
        costs |= {"peak_bytes/batch10_amortised": 1e6, "ffe": b + 0.5, "cache_bytes_per_image": 64.0}
        made += [{**point, "metric": metric, "value": value, "counter": "c"} for metric, value in costs.items()]
        made += [{**point, "metric": "fd_1000", "value": fd, "seed_set": seed} for seed, fd in enumerate(values)]
    return made


def settings(folder: Path) -> dict[str, Any]:
    unused = {"_target_": "lightning.pytorch.loggers.WandbLogger", "name": "g", "job_type": "train"}
    return {**unused, "project": "p", "entity": None, "group": "g", "save_dir": str(folder), "offline": True}


@pytest.fixture(scope="module")
def logged(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """Two points and a report of them, logged offline -> the runs by name."""
    folder = tmp_path_factory.mktemp("logged")
    (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records()))
    save_grid(torch.full((2, 3, 8, 8), 7, dtype=torch.uint8), folder / "images" / "shortcut_16,4.png", 2)
    track = Tracker(settings(folder / "new"), {"seed": 3, "data": {"long": "x" * 100_000}})
    track.log_points(records(), folder / "images")
    write_report([folder / "results.jsonl"], folder / "report", logged=track)
    return {run["display_name"]: run for run in offline_runs(folder / "new")}


def test_every_point_is_a_run_of_the_experiments_group(logged):
    assert len(logged) == 3
    jobs = {name: run["job_type"] for name, run in logged.items() if name != "vanilla 16"}
    assert jobs.pop("shortcut 16,4") == "evaluate"
    assert list(jobs.values()) == ["report"]
    assert {(run["project"], run["run_group"]) for run in logged.values()} == {("p", "g")}
    assert len({run["run_id"] for run in logged.values()}) == 3


def test_metric_keys_carry_the_protocol_and_values_are_means_over_seed_sets(logged):
    found = {k: v for k, v in logged["shortcut 16,4"]["logged"].items() if k.startswith(("quality", "cost"))}
    assert found == {
        "quality/fd_1000": 12.5,
        "quality/fd_1000/deviation": pytest.approx(4.5**0.5),
        "cost/seconds_per_image/batch10_amortised": 0.004,
        "cost/seconds_per_image/batch1_wall": 0.04,
        "cost/peak_bytes/batch10_amortised": 1e6,
        "cost/ffe": 4.5,
        "cost/cache_bytes_per_image": 64.0,
    }


def test_every_run_holds_the_resolved_config_and_says_which_point_it_is(logged):
    for run in logged.values():
        assert run["config"]["resolved"] == {"seed": 3, "data": {"long": "x" * 100_000}}  # more than one block
    point = logged["shortcut 16,4"]["config"]["point"]
    wanted = {"label": "shortcut 16,4", "method": "shortcut", "num_steps": 16, "num_full_steps": 4, "base": "b"}
    assert wanted.items() <= point.items()


def test_a_point_shows_its_preview(logged):
    run = logged["shortcut 16,4"]
    assert run["logged"]["preview/_type"] == "image-file"
    with Image.open(run["media"] / run["logged"]["preview/path"]) as image:
        assert image.getpixel((8, 8)) == (7, 7, 7)
    assert not [key for key in logged["vanilla 16"]["logged"] if key.startswith("preview")]


def test_a_report_shows_table_planes_and_figures(logged):
    (run,) = (run for run in logged.values() if run["job_type"] == "report")
    table = json.loads((run["media"] / run["logged"]["table/path"]).read_text())
    assert table["columns"][:4] == ["method", "N", "B", "fd_1000"]
    assert [row[0] for row in table["data"]] == ["vanilla", "shortcut"]
    plane = "pareto/fd_1000/cost/seconds_per_image/batch1_wall"
    shown = run["config"][f"_wandb/visualize/{plane}"]["panel_config"]
    assert shown["fieldSettings"] == {"x": "cost/seconds_per_image/batch1_wall", "y": "fd_1000"}
    points = json.loads((run["media"] / run["logged"][f"{plane}_table/path"]).read_text())["data"]
    assert points == [[0.16, 11.0, "vanilla", "vanilla 16"], [0.04, 12.5, "shortcut", "shortcut 16,4"]]
    assert run["logged"]["figures/fd_1000_by_time/_type"] == "image-file"


def test_a_point_logged_again_replaces_its_run(logged, tmp_path):
    Tracker(settings(tmp_path), {}).log_points([r for r in records() if r["accelerator"] == "shortcut"], tmp_path)
    (again,) = offline_runs(tmp_path)
    assert again["run_id"] == logged["shortcut 16,4"]["run_id"]


def test_trials_of_a_sweep_share_a_group_but_no_run(logged, tmp_path):
    trial = {**settings(tmp_path), "name": "g/r1_d2_seed0"}
    Tracker(trial, {}).log_points([r for r in records() if r["accelerator"] == "shortcut"], tmp_path)
    (run,) = offline_runs(tmp_path)
    assert run["run_group"] == logged["shortcut 16,4"]["run_group"]
    assert run["run_id"] != logged["shortcut 16,4"]["run_id"]


def made_dashboard() -> Any:
    return workspace("", "p", "g", ["fd_1000"], cost_keys(summarise(records())))


def test_the_dashboard_is_the_golden_file():
    """A change of it on purpose: write `spec(made_dashboard())` to the file."""
    assert spec(made_dashboard()) == spec(made_dashboard()) == GOLDEN.read_text(encoding="utf-8")


def test_the_dashboards_keys_are_those_that_runs_log(logged):
    keys = {key for run in logged.values() for key in run["logged"]}
    text = GOLDEN.read_text(encoding="utf-8")
    asked = {part.split('"')[0] for part in text.split('"summary:')[1:]}
    assert len(asked) == 4
    assert asked <= keys


@pytest.mark.parametrize(
    ("offline", "entity", "saved"), [(True, None, []), (False, None, ["mine"]), (False, "t", ["t"])]
)
def test_the_dashboard_is_written_and_sent_only_online(tmp_path, monkeypatch, offline, entity, saved):
    sent: list[str] = []
    monkeypatch.setattr("wandb_workspaces.workspaces.Workspace.save", lambda self: sent.append(self.entity))
    track = Tracker({**settings(tmp_path), "offline": offline, "entity": entity}, {})
    monkeypatch.setattr(track.wandb, "Api", lambda: type("Api", (), {"default_entity": "mine"}))
    track.write_dashboard([summarise(records())], tmp_path / "dashboard.json")
    assert sent == saved
    assert (tmp_path / "dashboard.json").read_text() == GOLDEN.read_text().replace(
        '"entity": ""', f'"entity": "{entity or ""}"'
    )


@pytest.mark.parametrize(("key", "offline"), [(None, True), ("", True), ("secret", False)])
def test_runs_are_offline_where_there_is_no_key(monkeypatch, tmp_path, key, offline):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    config = load(composed("train", "logger=wandb", f"paths.output_dir={tmp_path}"), TrainConfig)
    assert config.logger["wandb"]["offline"] is offline
    assert "secret" not in str(config)


def test_nothing_is_logged_unless_chosen(tmp_path, monkeypatch):
    config = load(composed("report", f"paths.output_dir={tmp_path}"), ReportConfig)
    assert tracker(config.logger, {}) is None
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=naming("logger=wandb", "logger=csv", "pip install")):
        tracker({"wandb": settings(tmp_path)}, {})
