"""`python -m migm.bench`: what steps, the sampling around them and whole runs cost, variants side by side."""

import hydra
from omegaconf import DictConfig

from migm.benchmarks.run import bench_compute, bench_loading, bench_training, bench_waiting
from migm.config.building import conf_path, load
from migm.config.compare import plans
from migm.config.roots import BenchConfig
from migm.runtime.errors import command
from migm.runtime.writing import refuse_unwritable


@hydra.main(config_path=conf_path(), config_name="bench", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Measure a part of the program, print tables, draw a figure, append JSON lines to `output`."""
    config = load(cfg, BenchConfig)
    refuse_unwritable(config.output, f"output={config.output}")
    if config.part == "loading":
        bench_loading(config)
    elif config.part == "waiting":
        bench_waiting(config)
    elif config.part == "train":
        bench_training(config, plans(cfg, config))
    else:
        bench_compute(config, plans(cfg, config))


if __name__ == "__main__":
    main()
