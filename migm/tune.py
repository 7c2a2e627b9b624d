"""`python -m migm.tune`: the best samplers of a base at shares of vanilla's time, verified and kept as a front."""

import hydra
from omegaconf import DictConfig

from migm.config.building import conf_path, load
from migm.config.candidates import CandidateParts
from migm.config.roots import TuneConfig
from migm.runtime.errors import command
from migm.tuning.run import tune


@hydra.main(config_path=conf_path(), config_name="tune", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Load the config and tune."""
    tune(CandidateParts(cfg, load(cfg, TuneConfig)))


if __name__ == "__main__":
    main()
