"""`python -m migm.metric_reference`: statistics of real images, for every metric that lacks them."""

from contextlib import ExitStack

import hydra
from omegaconf import DictConfig

from migm.cifar10.photos import Photos
from migm.config.building import conf_path, load
from migm.config.roots import MetricReferenceConfig
from migm.metrics.making import make, missing
from migm.runtime.console import Plain
from migm.runtime.errors import UserError, command
from migm.runtime.writing import writing


@hydra.main(config_path=conf_path(), config_name="metric_reference", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Load the config and write the missing references."""
    config, console = load(cfg, MetricReferenceConfig), Plain()
    if config.images is None:
        raise UserError("images=null: give a folder or a zip of real images")
    missing_paths = missing(config.metric)
    if not missing_paths:
        console.print("nothing to do: every reference is there; delete a file to make it again")
        return
    with ExitStack() as stack:
        for path in missing_paths:
            stack.enter_context(writing(path, f"metric.*.reference={path}"))
        make(missing_paths, Photos(config.images, config.size), config, console)


if __name__ == "__main__":
    main()
