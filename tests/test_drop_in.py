"""One Python file and one YAML of one's own, outside the package, are a new part of every kind."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open

import migm.analyse
import migm.evaluate
import migm.generate
import migm.train
from migm.evaluation.results import read
from migm.runtime.jsonl import read_lines

TINY = ["+experiment=tiny_shortcut", "device=cpu", "metric=[none]", "evalset.num_images=4", "evalset.batch_size=2"]
QUICK = ["trainer.max_steps=12", "lr_schedule.warmup_steps=2", "trainer.precision=32-true", "trainer.accelerator=cpu"]


@pytest.fixture
def drop(call_main, tmp_path, monkeypatch) -> Callable[..., Callable[..., str]]:
    """Write the two files -> a function that runs a command with them, which has to succeed, and returns its output."""

    def write(name: str, code: str, group: str, text: str) -> Callable[..., str]:
        (tmp_path / f"{name}.py").write_text(f'"""Dropped in."""\n{code}')
        path = tmp_path / "conf" / group / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, name, raising=False)

        def run(main: Callable[[], None], *overrides: str) -> str:
            fixed = ["--config-dir", str(tmp_path / "conf"), *TINY, f"paths.output_dir={tmp_path}"]
            status, out, err = call_main(main, *fixed, *overrides)
            assert status == 0, err
            return out

        return run

    return write


def ffe(folder: Path) -> dict[tuple[str, int], Any]:
    records = read(folder / "tiny_shortcut" / "results.jsonl")
    return {(r["accelerator"], r["num_full_steps"]): r["value"] for r in records if r["metric"] == "ffe"}


BASE = '''
import torch

from migm.bases.base import BaseSpec, Branch, Control


class Table:
    """Features are rows of a table, by token, plus one by label."""

    def __init__(self, channels: int = 48):
        self.spec = BaseSpec(16, (4, 4), 24, channels, 0)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.table = torch.randn(36, channels, generator=torch.Generator().manual_seed(0))

    def review(self, inputs):
        return ""

    def encode(self, inputs, guided):
        return [self.branch(inputs[:, None])] + guided * [self.branch(torch.full_like(inputs, 10)[:, None])]

    def branch(self, condition, length=None, lengths=None):
        return Branch(condition, torch.arange(16).expand(len(condition), -1))

    def features(self, tokens, branch, moment):
        return self.table[tokens] + self.table[25 + branch.condition]

    def head(self, features, positions=None, rows=None):
        return features @ self.table[:24].T

    def control(self, tokens, positions, branch, mask=None):
        return Control(self.table[tokens], positions, mask)

    def decode(self, tokens):
        return (tokens * 10).to(torch.uint8).view(-1, 1, 4, 4).expand(-1, 3, -1, -1).contiguous()

    def tokenize(self, images):
        raise NotImplementedError

    def fingerprint(self):
        return "table"

    def decoder_fingerprint(self):
        return "tens"
'''


def test_a_base(drop, tmp_path):
    run = drop("own_base", BASE, "base", "_target_: own_base.Table\nchannels: 48\n")
    more = ["base=own_base", "sampling=plain", "accelerator=vanilla", "shortcut.channels=48", "labels=[1]"]
    run(migm.generate.main, *more, f"output={tmp_path}/x.png")
    assert Image.open(tmp_path / "x.png").size >= (4, 4)


NETWORK = '''
from torch import nn

from migm.shortcuts.network import ShortcutNetwork


class Linear(ShortcutNetwork):
    """One layer; it reads neither tokens nor the mask ratio."""

    def __init__(self, channels: int, bias: bool = True):
        super().__init__()
        self.config = {"channels": channels, "bias": bias}
        self.layer = nn.Linear(channels, channels, bias)

    def forward(self, features, new, mask_ratio):
        return features + self.layer(features)
'''


def test_a_shortcut_network_trains_is_saved_and_loaded_again(drop, tmp_path):
    text = "_target_: own_network.Linear\nchannels: ${base.transformer.channels}\nbias: false\n"
    run = drop("own_network", NETWORK, "shortcut", text)
    run(migm.train.main, *QUICK, "shortcut=own_network", "evaluate=false")
    with safe_open(tmp_path / "tiny_shortcut" / "shortcut.safetensors", "pt") as file:
        assert file.metadata()["kind"] == "own_network.Linear"
        assert list(file.keys()) == ["layer.weight"]
    run(migm.evaluate.main, "shortcut=own_network", "~points.reuse")
    assert 2 < ffe(tmp_path)["shortcut", 2] < 3


OBJECTIVE = '''
from dataclasses import dataclass

from migm.training.terms.term import over_rows


@dataclass(frozen=True)
class Top:
    """How much less the true most likely token is predicted, at masked positions."""

    weight: float = 1.0

    def sums(self, seen):
        top = (seen.true - seen.predicted).gather(2, seen.true.argmax(-1, keepdim=True))[..., 0]
        return [(top * seen.masked).sum(1)]

    def value(self, sums, masked):
        return over_rows(sums[0] / masked.clamp(min=1), masked)


class Largest:
    """The largest error of a feature."""

    weight = 1.0

    def value(self, seen):
        return ((seen.features - seen.wide) * seen.rows[..., None]).abs().amax()
'''


def test_terms_of_an_objective_train_and_are_logged(drop, tmp_path):
    terms = "terms: {top: {_target_: own_terms.Top, weight: 0.5}, largest: {_target_: own_terms.Largest}}\n"
    run = drop("own_terms", OBJECTIVE, "objective", f"_target_: migm.training.objective.Mixture\n{terms}")
    run(migm.train.main, *QUICK, "objective=own_terms", "evaluate=false", "logger=csv", "trainer.log_every_n_steps=4")
    (log,) = (tmp_path / "tiny_shortcut").rglob("metrics.csv")
    heads = set(log.read_text().splitlines()[0].split(","))
    assert {"train/top", "val/top", "train/largest", "val/largest", "val/fidelity_kl"} <= heads


ANCHORED = '''
import torch
from torch import nn

from migm.shortcuts.network import ShortcutNetwork


class Scaled(ShortcutNetwork):
    """The change of the last full steps, scaled by a learned weight."""

    reads = "two_full_steps"

    def __init__(self, channels: int, max_gap: int):
        super().__init__()
        self.config, self.max_gap = {"channels": channels, "max_gap": max_gap}, max_gap
        self.weight = nn.Parameter(torch.zeros(channels))

    def forward(self, features, new, mask_ratio, past):
        return features + self.weight * (past.gap + past.mask_ratio)[:, None, None] * (features - past.earlier)
'''


@pytest.mark.slow
def test_a_network_that_starts_from_full_steps_trains_and_samples(drop, tmp_path):
    text = "_target_: own_anchored.Scaled\nchannels: ${base.transformer.channels}\nmax_gap: ${migm_max_gap:}\n"
    run = drop("own_anchored", ANCHORED, "shortcut", text)
    out = run(migm.train.main, *QUICK, "shortcut=own_anchored", "~points.reuse")
    assert "for up to 2 cheap steps in a row" in out
    assert 2 <= ffe(tmp_path)["shortcut", 2] < 3


METHOD = '''
from dataclasses import dataclass


@dataclass(frozen=True)
class Scaled:
    """The last full step's features, scaled."""

    by: float = 1.0

    def start(self, base, branch):
        return _State(self.by)


class _State:
    def __init__(self, by):
        self.by = by

    def update(self, step, features):
        self.features = features

    def predict(self, step, tokens, new_positions, moment):
        return self.by * self.features
'''


def test_a_method_also_as_a_point(drop, tmp_path):
    text = """_target_: migm.accelerators.accelerator.Accelerator
name: own_method
policy: {_target_: migm.accelerators.refresh.Uniform, num_full_steps: "${sampling.num_full_steps}"}
predictor: {_target_: own_method.Scaled, by: 0.9}
"""
    run = drop("own_method", METHOD, "accelerator", text)
    run(migm.evaluate.main, "points={vanilla: [6], own_method: [[6, 2]]}")
    assert ffe(tmp_path)["vanilla", 6] == 6
    assert 2 <= ffe(tmp_path)["own_method", 2] < 3
    run(migm.generate.main, "accelerator=own_method", "labels=[1]", f"output={tmp_path}/x.png")


METRIC = '''
import torch

from migm.metrics.metric import QualityMetric


class Brightness(QualityMetric):
    """Mean of all pixels, in [0, 1]."""

    metric_name, unit, higher_is_better, reference_hash = "brightness", "", True, ""

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @staticmethod
    def needs(name, node):
        return []

    def update(self, batch):
        self.total += batch.images.double().mean((1, 2, 3)).sum() / 255
        self.count += len(batch.images)

    def compute(self):
        return self.total / self.count
'''


def test_a_metric(drop, tmp_path):
    run = drop("own_metric", METRIC, "metric", "brightness:\n  _target_: own_metric.Brightness\n")
    run(migm.evaluate.main, "metric=[own_metric]", "points={vanilla: [2]}", "cost=false")
    (record,) = read(tmp_path / "tiny_shortcut" / "results.jsonl")
    assert record["metric"] == "brightness_4"
    assert 0 < record["value"] < 1


STORAGE = '''
from dataclasses import dataclass

import torch

from migm.trajectories.estimate import Costs
from migm.trajectories.storage import Stored


@dataclass(frozen=True)
class Half(Stored):
    """Features in float16."""

    name: str = "half"
    kept = torch.float16

    def costs(self, work):
        return Costs(work.feature_bytes(work.images, self.kept), before=work.images * work.seconds_an_image)
'''


def test_a_storage(drop, tmp_path):
    run = drop("half", STORAGE, "data/storage", "_target_: half.Half\nname: half\n")
    out = run(migm.train.main, *QUICK, "data/storage=half", "evaluate=false")
    assert re.search(r"^ *half +\d.* MB|^ *half +\d.* kB", out, re.MULTILINE)  # in the comparison of all storages
    (folder,) = (tmp_path / "trajectories").iterdir()
    assert "_half_" in folder.name
    header = read_lines(folder / "manifest.jsonl")[0]
    assert (header["storage"], header["dtype"]) == ("half", "float16")
    with safe_open(folder / "000000.safetensors", "pt") as file:
        assert file.get_slice("features").get_dtype() == "F16"


ANALYSIS = '''
class Count:
    """How many points there are to compare."""

    needs_points = True

    def run(self, setting, figure):
        figure.write_bytes(b"")
        return {"points": len(setting.samplers)}
'''


def test_an_analysis(drop, tmp_path):
    run = drop("own_analysis", ANALYSIS, "analyses", "count:\n  _target_: own_analysis.Count\n")
    run(migm.analyse.main, "analyses=[own_analysis]", "points={vanilla: [2, 6]}")
    numbers = json.loads((tmp_path / "tiny_shortcut" / "analyses" / "count.json").read_text())
    assert numbers["points"] == 2
