"""`python -m migm.train`: collect what is missing, train the shortcut, evaluate, report.

Every part goes on where it stopped when the same command is started again.
"""

from contextlib import closing
from pathlib import Path

import hydra
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from migm.config.building import build, conf_path, load, with_own_points
from migm.config.points import points
from migm.config.roots import TrainConfig
from migm.evaluation.study import Study, study
from migm.reporting.sweep import Recorder
from migm.reporting.wandb import refuse_untracked, tracker
from migm.reporting.write import write_report
from migm.runtime.distributed import first_console, join, rank
from migm.runtime.errors import command
from migm.runtime.files import write_atomic
from migm.runtime.launch import in_sweep
from migm.runtime.writing import writing
from migm.training.run import Training
from migm.trajectories.collect import announce_online, collect, header, refuse_unwritable_store, trajectory_sampling


@hydra.main(config_path=conf_path(), config_name="train", version_base="1.3")
@command
def main(cfg: DictConfig) -> float:
    """Collect, train, evaluate and report, as the config asks."""
    config = load(cfg, TrainConfig)
    recorder = Recorder(config)
    if done := recorder.finished():
        return done.feature_mse
    output = config.paths["output_dir"]
    with writing(Path(output) / config.name, f"name={config.name} in paths.output_dir={output}", folder=True):
        return run(config, cfg, recorder)


def run(config: TrainConfig, cfg: DictConfig, recorder: Recorder) -> float:
    """The parts that are asked for, one after the other -> the validation error."""
    refuse_untracked(config.logger)
    if config.collect:
        refuse_unwritable_store(config.data)
    base, data = build(config.base), build(config.data)
    join(base.device)
    console = first_console()
    sampling, training = build(config.sampling), Training(config, base)
    training.refuse_without_room()
    measured = study(points(cfg, config), config, base) if config.evaluate else None
    if rank_zero_only.rank == 0:
        write_atomic(training.folder / "config.yaml", OmegaConf.to_yaml(with_own_points(cfg), resolve=True))
    described = trajectory_sampling(config.sampling)
    data.attach(base, sampling, config.seed)
    if data.storage == "online":
        announce_online(base, sampling, data, training.max_steps)
    elif config.collect:
        console.rule("collect")
        collect(base, sampling, data, config.seed, described, training.max_steps)
    else:
        data.store(header(base, sampling, data, config.seed, described))
    console.rule("train")
    with closing(training):
        error = training.run(data)
        if rank() == 0:
            recorder.trained(training.module.shortcut, error, training.seconds, base.device)
        if measured:
            console.rule("evaluate")
            measured.run(cost=config.cost)
        if measured and rank() == 0:
            show(training, measured, config)
    if rank() == 0:
        recorder.end()
    return error


def show(training: Training, measured: Study, config: TrainConfig) -> None:
    """W&B's runs of the points, those of a sweep's trial in its training's run, and the report."""
    logged = tracker(config.logger, training.resolved)
    if logged:
        live = training.followed[0].experiment if training.followed and in_sweep() else None
        if live:  # said again: an earlier process may have trained, and this be a later part of its run
            training.followed[0].log_hyperparams({"resolved": training.resolved})
        logged.log_points(measured.measured(), measured.preview, live)
    if not measured.metrics:
        training.console.print("no report: metric=[none] measures no quality")
    elif config.report:
        write_report([measured.results.path], training.folder / "report", logged=logged)


if __name__ == "__main__":
    main()
