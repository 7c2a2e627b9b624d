"""`python -m migm.place`: where an accelerator's full steps do least harm, from errors along vanilla trajectories."""

import hydra
from omegaconf import DictConfig

from migm.analyses.placing import Placing, run
from migm.config.building import build, conf_path, load
from migm.config.roots import PlaceConfig
from migm.runtime.errors import UserError, command
from migm.runtime.writing import writing


@hydra.main(config_path=conf_path(), config_name="place", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Measure what is missing, write file, figure and table of errors, and print what was chosen."""
    config = load(cfg, PlaceConfig)
    placing = build(config.place)
    if not isinstance(placing, Placing):
        raise UserError(f"place makes a {type(placing).__name__}; it must be a migm.analyses.placing.Placing")
    with writing(placing.output, f"place.output={placing.output}"):
        run(config, placing)


if __name__ == "__main__":
    main()
