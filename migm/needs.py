"""`python -m migm.needs metric=[...] evalset=...`: the files of an evaluation, and where to get what is missing."""

import hydra
from omegaconf import DictConfig

from migm.config.building import conf_path, load
from migm.config.roots import EvaluateConfig
from migm.metrics.files import needs
from migm.runtime.console import Plain
from migm.runtime.errors import command


@hydra.main(config_path=conf_path(), config_name="evaluate", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Print a line per file, and below a missing file where to get it."""
    config, console = load(cfg, EvaluateConfig), Plain(highlight=False)
    for need, users in needs(config.metric, config.evalset).items():
        there = need.path.exists()
        console.print(f"{'present' if there else 'missing'}  {need.path}  ({', '.join(users)})")
        if not there:
            console.print(f"         {need.source}")


if __name__ == "__main__":
    main()
