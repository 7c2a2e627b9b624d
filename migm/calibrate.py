"""`python -m migm.calibrate`: what L2P and TeaCache need to know of a base, from a few vanilla trajectories."""

import time
from dataclasses import replace
from pathlib import Path

import hydra
from omegaconf import DictConfig

from migm.accelerators.calibration import FORMAT
from migm.config.building import build, conf_path, load
from migm.config.roots import CalibrateConfig
from migm.runtime.console import Plain
from migm.runtime.errors import command
from migm.runtime.files import refuse_other_format
from migm.runtime.provenance import environment
from migm.runtime.writing import writing
from migm.sampling.calibrate import calibrate
from migm.sampling.sampler import Sampler
from migm.shortcuts.checkpoint import BETWEEN


@hydra.main(config_path=conf_path(), config_name="calibrate", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Fit on `num_images` trajectories of vanilla sampling and write `output`."""
    config, started = load(cfg, CalibrateConfig), time.perf_counter()
    with writing(config.output, f"output={config.output}"):
        refuse_other_format(Path(config.output), FORMAT, "output=")
        sampler = Sampler(build(config.base), build(config.sampling), runtime=build(config.runtime))
        source = build(config.evalset["inputs"])
        made = calibrate(sampler, source, config.num_images, config.batch_size, config.seed)
        others = [build({**config.base, "dtype": dtype}).fingerprint() for dtype in config.dtypes]
        bases = BETWEEN.join(dict.fromkeys([made.base, *others]))
        card = {**made.card, "inputs": source.fingerprint(), "made_with": environment(sampler.base.device)}
        replace(made, base=bases, card=card).save(Path(config.output))
    Plain().print(f"calibrated on {config.num_images} images in {time.perf_counter() - started:.0f} s: {config.output}")


if __name__ == "__main__":
    main()
