"""`python -m migm.evaluate`: quality, time and FFE of every point, appended to results.jsonl."""

from dataclasses import asdict
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from migm.config.building import build, conf_path, load, with_own_points
from migm.config.points import former_identities, points
from migm.config.roots import EvaluateConfig
from migm.evaluation.study import Study, study
from migm.reporting.summary import summarise
from migm.reporting.wandb import tracker
from migm.runtime.distributed import join, rank
from migm.runtime.errors import command
from migm.runtime.files import write_atomic
from migm.runtime.writing import refuse_unwritable, writing


def objectives(study: Study) -> tuple[float, float] | None:
    """Return what a sweeper minimises: seconds an image and the first metric, negated if higher is better.

    Returns None unless there is exactly one point with both values.
    """
    if len(study.samplers) != 1 or not study.metrics:
        return None
    summary = summarise(study.measured())
    row, metric = summary.rows[0], summary.metrics()[0]
    value = row.mean(metric) * (-1 if summary.higher_is_better[metric] else 1)
    return None if row.seconds is None else (row.seconds, value)


def keep(cfg: DictConfig, path: Path, named: str) -> None:
    """Write the resolved config beside the results, whose records hold only hashes of it."""
    with writing(path, named, waiting=lambda _: None) as first:
        if first:
            write_atomic(path, OmegaConf.to_yaml(with_own_points(cfg), resolve=True))


@hydra.main(config_path=conf_path(), config_name="evaluate", version_base="1.3")
@command
def main(cfg: DictConfig) -> tuple[float, float] | None:
    """Load the config, build, and measure what is missing; the returned values are for sweepers."""
    config = load(cfg, EvaluateConfig)
    output = config.paths["output_dir"]
    folder, named = Path(output) / config.name, f"paths.output_dir={output}"
    refuse_unwritable(folder / "results.jsonl", named)
    chosen = points(cfg, config)
    keep(cfg, folder / "evaluate.yaml", named)
    base = build(config.base)
    join(base.device)
    logged = tracker(config.logger, asdict(config)) if rank() == 0 else None
    measured = study(chosen, config, base, lambda: former_identities(cfg, config, chosen))
    measured.run(cost=config.cost)
    if logged:
        logged.log_points(measured.measured(), measured.preview)
    return objectives(measured)


if __name__ == "__main__":
    main()
