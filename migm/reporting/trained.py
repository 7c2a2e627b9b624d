"""Surround a training: how much work its command has in all, its points in W&B, and the report."""

from collections.abc import Iterator
from contextlib import contextmanager

from migm.bases.base import block_parameters
from migm.config.by_front import front_of
from migm.config.roots import TrainConfig
from migm.evaluation.cost import effort
from migm.evaluation.study import Study
from migm.reporting.wandb import tracker
from migm.reporting.write import write_report
from migm.runtime.launch import in_sweep
from migm.runtime.progress import job
from migm.training.run import Training
from migm.trajectories.datamodule import TrajectoryData


@contextmanager
def parts(config: TrainConfig, training: Training, data: TrajectoryData, measured: Study | None) -> Iterator[None]:
    """Let progress show what is left of all parts of the command."""
    base, n = training.base, config.sampling["num_steps"]
    weights = sum(p.numel() for p in training.module.shortcut.parameters())
    pair = 3 * weights / (2 * block_parameters(base.spec))  # forward and backward, of one guidance half
    work = {"collect": float(data.num_images * n)} if config.collect and data.storage.stores else {}
    work["train"] = training.max_steps * data.batch_size * pair
    if measured:
        full = sum(map(effort, measured.samplers))
        if config.cost is True:
            work |= {p.name: full * p.batch * (measured.repeats + 1) for p in measured.protocols}
        work["evaluate"] = full * measured.evalset.num_images * len(measured.evalset.seed_sets)
    with job(work):
        yield


def show_trained(config: TrainConfig, training: Training, measured: Study) -> None:
    """Log the points to W&B, those of a sweep's trial in its training's run, and write the report."""
    logged = tracker(config.logger, training.resolved)
    if logged:
        live = training.followed[0].experiment if training.followed and in_sweep() else None
        if live:  # said again: an earlier process may have trained, and this be a later part of its run
            training.followed[0].log_hyperparams({"resolved": training.resolved})
        logged.log_points(measured.measured(), measured.preview, live)
    if not measured.metrics:
        training.console.print("no report: metric=[none] measures no quality")
    elif config.report:
        write_report([measured.results.path], training.folder / "report", logged=logged, front=front_of(config))
