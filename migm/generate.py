"""`python -m migm.generate`: images of labels or prompts and seeds, by any accelerator."""

import hydra
from omegaconf import DictConfig

from migm.config.building import conf_path, load
from migm.config.roots import GenerateConfig
from migm.runtime.errors import command
from migm.sampling.generation import run


@hydra.main(config_path=conf_path(), config_name="generate", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Load the config and make its images."""
    run(load(cfg, GenerateConfig))


if __name__ == "__main__":
    main()
