"""`python -m migm.evaluate`: quality, time and FFE of every point, appended to results.jsonl."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from migm.bases.base import Base
from migm.config import Common, EvaluateConfig, build, conf_path, load, variant, with_own_points
from migm.distributed import join, rank
from migm.evaluation.cost import Point
from migm.evaluation.study import Study
from migm.inputs import review
from migm.kinds import Count, fitted
from migm.report.results import Results
from migm.report.summary import summarise
from migm.report.wandb import tracker
from migm.runtime import UserError, command, write_atomic
from migm.writing import refuse_unwritable, writing


def points(cfg: DictConfig, config: Common) -> list[Point]:
    """The configurations of `points`, or the single one chosen by `accelerator` and `sampling`."""
    if not config.points:
        return [point(config)]
    found = []
    for name, entries in config.points.items():
        for entry in entries:
            n, b, changes = _entry(name, entry)
            made = point(load(variant(cfg, name, n, n if b is None else b, changes), type(config)), changes)
            if b not in (None, made.full_steps):
                sets = f"sets {made.full_steps} full steps" if made.full_steps else "decides while sampling"
                raise UserError(f"points.{name}={entry}: B is {b}, but its policy {sets}; give N alone")
            found.append(made)
    return found


def point(config: Common, changes: Mapping[str, Any] | None = None) -> Point:
    """The configuration chosen by `accelerator` and `sampling`; `changes` are what its label names besides."""
    accelerator = {**config.accelerator, "predictor": config.accelerator.get("predictor") or {}}
    settings = json.dumps(_without_files(accelerator), sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:12]
    named = " ".join(f"{key.split('.')[-1]}={value}" for key, value in (changes or {}).items())
    made = Point(build(config.sampling), build(config.accelerator), digest, named)
    _ = made.full_steps  # refuses what does not fit N, before anything runs
    return made


def _without_files(node: dict[str, Any]) -> dict[str, Any]:
    """Weights and fits are told apart by their own fingerprint, wherever they lie."""
    return {
        key: _without_files(value) if isinstance(value, dict) else value
        for key, value in node.items()
        if key not in ("weights", "fit")
    }


def _entry(name: str, entry: Any) -> tuple[int, int | None, dict[str, Any]]:
    """N, B if it is given, and changes of the accelerator."""
    if not isinstance(entry, dict):
        n, b = entry if isinstance(entry, list) else (entry, None)
        return n, b, {}
    changes = dict(entry)
    n = fitted(f"points.{name}.num_steps", changes.pop("num_steps", None), Count)
    b = fitted(f"points.{name}.num_full_steps", changes.pop("num_full_steps", None), Count | None)
    return n, b, changes


def study(cfg: DictConfig, config: Common, base: Base) -> Study:
    """The study of a config, writing to `<output_dir>/<name>/results.jsonl`."""
    results = Results(Path(config.paths["output_dir"]) / config.name / "results.jsonl")
    metrics = [build(metric) for metric in config.metric.values()]
    evalset, protocols = build(config.evalset), config.latency
    review(base, evalset.inputs(torch.arange(evalset.num_images)), "evalset.inputs")
    return Study(base, points(cfg, config), config.sampling, evalset, metrics, results, protocols=protocols)


def objectives(study: Study) -> tuple[float, float] | None:
    """Seconds an image and the first metric, negated where higher is better: what a sweeper minimises.

    None unless there is one point with both.
    """
    if len(study.points) != 1 or not study.metrics:
        return None
    summary = summarise(study.measured())
    row, metric = summary.rows[0], summary.metrics()[0]
    value = row.mean(metric) * (-1 if summary.higher_is_better[metric] else 1)
    return None if row.seconds is None else (row.seconds, value)


def keep(cfg: DictConfig, path: Path, named: str) -> None:
    """Write what was asked for, resolved, beside the results, whose records hold hashes of it."""
    with writing(path, named, waiting=lambda _: None) as first:
        if first:
            write_atomic(path, OmegaConf.to_yaml(with_own_points(cfg), resolve=True))


@hydra.main(config_path=conf_path(), config_name="evaluate", version_base="1.3")
@command
def main(cfg: DictConfig) -> tuple[float, float] | None:
    """Load the config, build, measure what is missing; what is returned is for sweepers."""
    config = load(cfg, EvaluateConfig)
    output = config.paths["output_dir"]
    folder, named = Path(output) / config.name, f"paths.output_dir={output}"
    refuse_unwritable(folder / "results.jsonl", named)
    keep(cfg, folder / "evaluate.yaml", named)
    base = build(config.base)
    join(base.device)
    logged = tracker(config.logger, asdict(config)) if rank() == 0 else None
    measured = study(cfg, config, base)
    measured.run(cost=config.cost)
    if logged:
        logged.log_points(measured.measured(), measured.preview)
    return objectives(measured)


if __name__ == "__main__":
    main()
