"""Committed results of the studies keep counting, and results of an earlier version are read."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from tiny_parts import ROOT, composed

from migm.config.building import load
from migm.config.fronts import read_front
from migm.config.points import former_identities, points
from migm.config.roots import EvaluateConfig
from migm.evaluation.results import Results, read
from migm.reporting.write import write_report

STUDIES = {
    "001-cifar10-shortcut": ("cifar10_study", "vanilla 16"),
    "002-rivals-cifar10": ("rivals_cifar10", "vanilla 16"),
    "003-ablations-cifar10": ("ablations_cifar10", None),
    "006-dimoo-tiny": ("dimoo_tiny", None),
}
TABLES = ("table.md", "equal_time.md", "best.md", "fronts.md")


def results_of(study: str) -> Path:
    return ROOT / "experiments" / study / "results.jsonl"


def study_config(study: str):
    cfg = composed("evaluate", f"+experiment={STUDIES[study][0]}", "device=cpu")
    return cfg, load(cfg, EvaluateConfig)


@pytest.mark.parametrize("study", STUDIES)
def test_the_tables_are_those_that_were_committed(study, tmp_path):
    committed = [results_of(study).with_name(name) for name in TABLES if results_of(study).with_name(name).exists()]
    if study.startswith("003"):  # its tables are those of a sweep (migm.ablations), whose trials are not committed
        committed = []
    write_report([results_of(study)], tmp_path, STUDIES[study][1] or "")
    for path in committed:
        assert (tmp_path / path.name).read_text() == path.read_text(), path.name
    assert committed or study.startswith("003")


@pytest.mark.parametrize("study", STUDIES)
def test_every_record_is_of_a_point_that_the_experiment_has_today(study):
    cfg, config = study_config(study)
    chosen = points(cfg, config)
    now = {(p.accelerator.name, p.sampling.num_steps, p.accelerator.identity, p.sampling.identity) for p in chosen}
    for record in read(results_of(study)):
        assert tuple(record[key] for key in ("accelerator", "num_steps", "settings", "sampling")) in now


@pytest.mark.parametrize("study", ["002-rivals-cifar10", "006-dimoo-tiny"])
def test_records_with_hashes_are_translated_once_and_the_old_file_is_kept(study, tmp_path):
    cfg, config = study_config(study)
    former = former_identities(cfg, config, points(cfg, config))
    hashes = {text: old for old, text in former.items()}
    records = read(results_of(study))
    old = [{**r, "settings": hashes[r["settings"]], "sampling": hashes[r["sampling"]]} for r in records]
    other = {**old[0], "settings": "0123456789ab", "seed_set": 99}
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in [*old, other]))
    before = path.read_bytes()
    results = Results(path)
    assert results.translate(former) == (len(old), 1)
    assert read(path)[:-1] == records
    assert read(path)[-1]["settings"] == "0123456789ab"
    assert path.with_name("results.jsonl.former").read_bytes() == before
    assert all(map(results.has, records))
    assert Results(path).translate(former) == (0, 1)
    assert Results(path).translate({"0123456789ab": "Later()"}) == (1, 0)  # a later start that has its point
    assert read(path)[-1]["settings"] == "Later()"
    assert path.with_name("results.jsonl.former").read_bytes() == before


def script(path: str):
    """A script of the experiments, as a module."""
    made = spec_from_file_location(Path(path).stem, ROOT / "experiments" / path)
    module = module_from_spec(made)
    made.loader.exec_module(module)
    return module


def test_the_hypervolumes_are_those_that_were_committed(tmp_path, monkeypatch):
    here = ROOT / "experiments" / "012-front"
    volumes = script("012-front/volumes.py")
    monkeypatch.setattr(volumes, "draw", lambda *_: None)
    monkeypatch.setattr(volumes, "write_atomic", lambda path, text: (tmp_path / path.name).write_text(text))
    volumes.main()
    assert (tmp_path / "table.md").read_text() == (here / "table.md").read_text()


def test_the_ablation_tables_follow_from_their_records(tmp_path, monkeypatch):
    here = ROOT / "experiments" / "012-front"
    ablation = script("012-front/ablation.py")
    monkeypatch.setattr(ablation, "write_atomic", lambda path, text: (tmp_path / path.name).write_text(text))
    monkeypatch.setattr(ablation.sys, "argv", ["ablation.py"])
    ablation.main()
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted(path.name for path in here.glob("ablation_*.md")) != []
    assert all((tmp_path / name).read_text() == (here / name).read_text() for name in written)


def test_the_table_of_samplers_follows_from_its_records(tmp_path, monkeypatch):
    samplers = script("007-cifar10-deep/samplers.py")
    monkeypatch.setattr(samplers, "write_atomic", lambda path, text: (tmp_path / path.name).write_text(text))
    monkeypatch.setattr(samplers.sys, "argv", ["samplers.py"])
    samplers.main()
    assert (tmp_path / "samplers.md").read_text() == (ROOT / "experiments/007-cifar10-deep/samplers.md").read_text()


@pytest.mark.slow
def test_the_shipped_fronts_follow_from_the_records(tmp_path):
    for folder in ("cifar10_deep", "dimoo_tiny", "fronts"):
        (tmp_path / folder).mkdir()
    script("fronts.py").main(tmp_path)
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.json"))
    assert len(written) == 5
    for path in written:
        shipped = read_front(ROOT / "migm" / "assets" / path)
        made = read_front(tmp_path / path)
        assert (made.points, made.vanilla, made.base) == (shipped.points, shipped.vanilla, shipped.base), path
