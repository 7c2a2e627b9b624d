"""`python -m migm.report`: tables, figures and one HTML page from results files."""

from dataclasses import asdict

import hydra
from omegaconf import DictConfig

from migm.config.building import conf_path, load
from migm.config.by_front import front_of
from migm.config.roots import ReportConfig
from migm.reporting.wandb import tracker
from migm.reporting.write import write_report
from migm.runtime.errors import command
from migm.runtime.writing import writing


@hydra.main(config_path=conf_path(), config_name="report", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Read `results`, write the report to `folder`."""
    config = load(cfg, ReportConfig)
    with writing(config.folder, f"folder={config.folder}", folder=True):
        logged = tracker(config.logger, asdict(config))
        write_report(config.results, config.folder, config.baseline, config.images, logged, front_of(config))


if __name__ == "__main__":
    main()
