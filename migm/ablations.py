"""`python -m migm.ablations`: the trials of several sweeps in one table and as figures."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from migm.config.building import conf_path, load
from migm.config.roots import AblationsConfig
from migm.reporting.ablations import write_ablations
from migm.runtime.errors import command
from migm.runtime.writing import writing


@hydra.main(config_path=conf_path(), config_name="ablations", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Read the results that `migm.train` left of the sweeps, and write tables and figures."""
    config = load(cfg, AblationsConfig)
    experiment = Path(config.paths["output_dir"]) / config.name
    with writing(config.folder, f"folder={config.folder}", folder=True):
        write_ablations(experiment, config.sweeps, config.reference, Path(config.folder))


if __name__ == "__main__":
    main()
