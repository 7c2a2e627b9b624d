"""`python -m migm.humaneval`: blind pairs of two methods' images for people to judge, and what their votes say."""

import hydra
from omegaconf import DictConfig

from migm.config.building import conf_path, load
from migm.config.roots import HumanevalConfig
from migm.human_eval.exporting import count, hand_out
from migm.runtime.errors import UserError, command
from migm.runtime.writing import writing


@hydra.main(config_path=conf_path(), config_name="humaneval", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Export pairs, or with `votes` read what was voted on them."""
    config = load(cfg, HumanevalConfig)
    if config.votes and (config.method or config.baseline):
        raise UserError(
            f"votes={config.votes} with method={config.method}, baseline={config.baseline}: give the votes alone to "
            "score an export, or the two folders alone to make one"
        )
    with writing(config.folder, f"folder={config.folder}", folder=True):
        if config.votes:
            count(config)
        else:
            hand_out(config)


if __name__ == "__main__":
    main()
