"""`python -m migm.side_by_side`: the same images by several methods in one page, with time, speed-up and FFE."""

import hydra
from omegaconf import DictConfig

from migm.config.building import conf_path, load
from migm.config.points import points
from migm.config.roots import SideBySideConfig
from migm.reporting.side_by_side import refuse_few, run
from migm.runtime.errors import command
from migm.runtime.writing import writing
from migm.sampling.generation import refuse_inputs


@hydra.main(config_path=conf_path(), config_name="side_by_side", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Load the config, and make, time and show the images of its points."""
    config = load(cfg, SideBySideConfig)
    refuse_inputs(config)
    chosen = points(cfg, config)
    refuse_few(chosen)
    with writing(config.folder, f"folder={config.folder}", folder=True):
        run(config, chosen)


if __name__ == "__main__":
    main()
