"""`python -m migm.calibrate`: what L2P and TeaCache need to know of a base, from a few vanilla trajectories."""

import time
from pathlib import Path

import hydra
from omegaconf import DictConfig

from migm.accelerators.calibration import FORMAT
from migm.config.building import build, conf_path, load
from migm.config.roots import CalibrateConfig
from migm.runtime.console import Plain
from migm.runtime.errors import command
from migm.runtime.sealed import refuse_foreign
from migm.runtime.writing import writing
from migm.sampling.calibrate import calibrate


@hydra.main(config_path=conf_path(), config_name="calibrate", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Fit on `num_images` trajectories of vanilla sampling and write `output`."""
    config, started = load(cfg, CalibrateConfig), time.perf_counter()
    with writing(config.output, f"output={config.output}"):
        refuse_foreign(Path(config.output), FORMAT, "output=")
        base, sampling = build(config.base), build(config.sampling)
        source = build(config.evalset["inputs"])
        found = calibrate(base, sampling, source, config.num_images, config.batch_size, config.seed)
        found.save(Path(config.output))
    Plain().print(f"fitted on {config.num_images} images in {time.perf_counter() - started:.0f} s: {config.output}")


if __name__ == "__main__":
    main()
