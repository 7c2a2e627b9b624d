"""`python -m migm.analyse`: the paper's analysis figures, on any base."""

import hydra
from omegaconf import DictConfig

from migm.analyses.running import compares_points, run
from migm.config.building import conf_path, load
from migm.config.points import points
from migm.config.roots import AnalyseConfig
from migm.runtime.errors import command
from migm.runtime.writing import writing


@hydra.main(config_path=conf_path(), config_name="analyse", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Load the config and run the analyses that it names."""
    config = load(cfg, AnalyseConfig)
    with writing(config.folder, f"folder={config.folder}", folder=True):
        run(config, points(cfg, config) if compares_points(config) else [])


if __name__ == "__main__":
    main()
