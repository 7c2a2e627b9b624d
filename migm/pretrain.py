"""`python -m migm.pretrain`: train feature net, tokenizer and base from the photos, and bundle them."""

import hydra
from omegaconf import DictConfig

from migm.config import PretrainConfig, build, conf_path, load
from migm.runtime import command


@hydra.main(config_path=conf_path(), config_name="pretrain", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Run the stages in order; each goes on where it stopped."""
    config = load(cfg, PretrainConfig)
    base = build({**config.base, "random_weights": True, "dtype": "float32"})
    build(config.pretrain).run(config.stages, base)


if __name__ == "__main__":
    main()
