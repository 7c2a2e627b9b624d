"""`python -m migm.evaluate`: quality, time and FFE of every point, appended to results.jsonl."""

import hashlib
import json
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from migm.bases.base import Base
from migm.config import Common, EvaluateConfig, build, conf_path, load, variant
from migm.evaluation.cost import Point
from migm.evaluation.study import Study
from migm.report.results import Results
from migm.runtime import UserError, command


def points(cfg: DictConfig, config: Common) -> list[Point]:
    """The configurations of `points`, or the single one chosen by `accelerator` and `sampling`."""
    if not config.points:
        return [point(config)]
    found = []
    for name, pairs in config.points.items():
        for pair in pairs:
            n, b = _steps(name, pair)
            chosen = load(variant(cfg, name, n, b), type(config))
            found.append(point(chosen))
    return found


def point(config: Common) -> Point:
    """The configuration chosen by `accelerator` and `sampling`."""
    # Weights are told apart by their own fingerprint, wherever they lie.
    predictor = {k: v for k, v in (config.accelerator.get("predictor") or {}).items() if k != "weights"}
    settings = json.dumps({**config.accelerator, "predictor": predictor}, sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:12]
    return Point(build(config.sampling), build(config.accelerator), digest)


def _steps(name: str, pair: Any) -> tuple[int, int]:
    values = pair if isinstance(pair, list) else [pair, pair]
    if len(values) != 2 or not all(isinstance(v, int) for v in values):
        raise UserError(f"points.{name}={pair} must be N, or [N, B], as whole numbers")
    return values[0], values[1]


def study(cfg: DictConfig, config: Common, base: Base) -> Study:
    """The study of a config, writing to `<output_dir>/<name>/results.jsonl`."""
    results = Results(Path(config.paths["output_dir"]) / config.name / "results.jsonl")
    metrics = [build(metric) for metric in config.metric.values()]
    return Study(base, points(cfg, config), config.sampling, build(config.evalset), metrics, results)


@hydra.main(config_path=conf_path(), config_name="evaluate", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Load the config, build, measure what is missing."""
    config = load(cfg, EvaluateConfig)
    study(cfg, config, build(config.base)).run()


if __name__ == "__main__":
    main()
