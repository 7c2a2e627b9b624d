"""`python -m migm.bench`: what steps, the sampling around them and whole runs cost, side by side."""

import time
from pathlib import Path

import hydra
from omegaconf import DictConfig

from migm.benchmarks.compute import fitting, measure_compute, show, untrained
from migm.benchmarks.run import bench_loading, bench_waiting
from migm.config.building import build, conf_path, load
from migm.config.points import points
from migm.config.roots import BenchConfig
from migm.runtime.console import Plain
from migm.runtime.errors import command
from migm.runtime.jsonl import append_line
from migm.runtime.provenance import environment
from migm.runtime.writing import refuse_unwritable
from migm.sampling.sampler import Sampler


@hydra.main(config_path=conf_path(), config_name="bench", version_base="1.3")
@command
def main(cfg: DictConfig) -> None:
    """Measure steps and the runs of `points`, print a table per batch size, append JSON lines to `output`."""
    config = load(cfg, BenchConfig)
    others = {"loading": bench_loading, "waiting": bench_waiting}
    refuse_unwritable(config.output, f"output={config.output}")
    if config.part in others:
        others[config.part](config)
        return
    base, source, shortcut = build(config.base), build(config.evalset["inputs"]), build(config.shortcut).eval()
    vanilla = Sampler(base, build(config.sampling), runtime=build(config.runtime))
    samplers = [untrained(Sampler(base, *chosen), shortcut) for chosen in points(cfg, config)]
    path = Path(config.output)
    for wanted in config.batch_sizes:
        batch, rows = fitting(lambda b: measure_compute(vanilla, shortcut, samplers, source, b, config.repeats), wanted)
        lowered = "" if batch == wanted else f" ({wanted} does not fit the memory)"
        show(rows, f"batch {batch}{lowered}, {environment(base.device)['device']}")
        shared = {
            "base": base.fingerprint(),
            "batch_size": batch,
            "wanted_batch_size": wanted,
            "repeats": config.repeats,
        }
        for each in rows:
            when = time.strftime("%Y-%m-%dT%H:%M:%S")
            append_line(path, {**each, **shared, **environment(base.device), "time": when})
    Plain().print(f"appended to {path}")


if __name__ == "__main__":
    main()
