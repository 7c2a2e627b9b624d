"""`python -m migm.train`: collect what is missing, train the shortcut, evaluate, report."""

from contextlib import closing
from pathlib import Path

import hydra
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from migm.config.building import build, conf_path, load, with_own_points
from migm.config.points import former_identities, points
from migm.config.roots import TrainConfig
from migm.evaluation.study import study
from migm.reporting.sweep import TrialRecorder
from migm.reporting.trained import parts, show_trained
from migm.reporting.wandb import refuse_untracked
from migm.runtime.distributed import join, rank
from migm.runtime.errors import command
from migm.runtime.files import write_atomic
from migm.runtime.writing import writing
from migm.sampling.sampler import Sampler
from migm.training.run import Training, collect_and_train
from migm.trajectories.collect import refuse_unwritable_store


@hydra.main(config_path=conf_path(), config_name="train", version_base="1.3")
@command
def main(cfg: DictConfig) -> float:
    """Collect, train, evaluate and report, as the config asks."""
    config = load(cfg, TrainConfig)
    recorder = TrialRecorder(config)
    if done := recorder.finished():
        return done.feature_mse
    output = config.paths["output_dir"]
    with writing(Path(output) / config.name, f"name={config.name} in paths.output_dir={output}", folder=True):
        return run(config, cfg, recorder)


def run(config: TrainConfig, cfg: DictConfig, recorder: TrialRecorder) -> float:
    """Run the parts that the config asks for, one after the other, and return the validation error."""
    refuse_untracked(config.logger)
    data = build(config.data)
    if config.collect:
        refuse_unwritable_store(data)
    base = build(config.base)
    join(base.device)
    sampler, training = Sampler(base, build(config.sampling), runtime=build(config.runtime)), Training(config, base)
    training.refuse_without_room()
    chosen = points(cfg, config) if config.evaluate else []
    measured = study(chosen, config, base, lambda: former_identities(cfg, config, chosen)) if chosen else None
    if rank_zero_only.rank == 0:
        write_atomic(training.folder / "config.yaml", OmegaConf.to_yaml(with_own_points(cfg), resolve=True))
    with closing(training), parts(config, training, data, measured):
        error = collect_and_train(config, training, sampler, data)
        if rank() == 0:
            recorder.trained(training.module.shortcut, error, training.seconds, base.device)
        if measured:
            training.console.rule("evaluate")
            measured.run(cost=config.cost)
        if measured and rank() == 0:
            show_trained(config, training, measured)
    if rank() == 0:
        recorder.end()
    return error


if __name__ == "__main__":
    main()
