"""The end of a training: its points in W&B, and the report."""

from migm.config.roots import TrainConfig
from migm.evaluation.study import Study
from migm.reporting.wandb import tracker
from migm.reporting.write import write_report
from migm.runtime.launch import in_sweep
from migm.training.run import Training


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
        write_report([measured.results.path], training.folder / "report", logged=logged)
