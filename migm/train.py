"""`python -m migm.train`: collect what is missing, train the shortcut, evaluate, report.

Every part goes on where it stopped when the same command is started again.
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import hydra
import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from migm.bases.base import Base
from migm.collect import collect, trajectory_sampling
from migm.config import TrainConfig, build, conf_path, load
from migm.evaluate import study
from migm.report.write import write_report
from migm.runtime import UserError, command, write_atomic
from migm.shortcuts.checkpoint import save_shortcut
from migm.training.module import ShortcutModule
from migm.trajectories.datamodule import TrajectoryData


def fit(config: TrainConfig, base: Base, data: TrajectoryData) -> float:
    """Train, resuming from the last checkpoint of the same config; writes shortcut.safetensors.

    Returns the validation error, for sweepers.
    """
    folder, console = Path(config.paths["output_dir"]) / config.name, Console()
    weights, resume = folder / "shortcut.safetensors", folder / "checkpoints" / "resume.ckpt"
    plain = training_config(config)
    if resume.exists():
        state = check_resume(resume, plain, base.fingerprint())
        if weights.exists() and state["global_step"] >= config.trainer["max_steps"]:
            console.print(f"{weights} is trained already")
            return state["hyper_parameters"]["error"]
        console.print(f"resuming from {resume}, step {state['global_step']}")
    torch.manual_seed(config.seed)  # the shortcut does not depend on how the base was built
    shortcut, objective = build(config.shortcut), build(config.objective)
    module = ShortcutModule(shortcut, base, objective, build(config.optimizer), build(config.lr_schedule), plain)
    callbacks, loggers = list(build(config.callbacks).values()), list(build(config.logger).values())
    trainer: L.Trainer = build(
        {**config.trainer, "callbacks": callbacks, "logger": loggers, "default_root_dir": str(folder)}
    )
    trainer.fit(module, data, ckpt_path=resume if resume.exists() else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    error = float(trainer.callback_metrics.get("val/feature_mse", torch.nan))
    module.hparams["error"] = error
    trainer.save_checkpoint(resume)
    if trainer.is_global_zero:
        save_shortcut(module.shortcut, base.fingerprint(), weights)
        console.print(f"shortcut in {weights}, time of every part in {folder / 'fit-profile.txt'}")
    return error


def training_config(config: TrainConfig) -> dict[str, Any]:
    """The part of a config that a resumed training must share with its checkpoint."""
    keys = ("seed", "shortcut", "objective", "optimizer", "lr_schedule", "data")
    plain = {key: getattr(config, key) for key in keys}
    plain["sampling"] = trajectory_sampling(config.sampling)
    plain["max_steps"] = config.trainer["max_steps"]
    return plain


def check_resume(path: Path, plain: dict[str, Any], base: str) -> dict[str, Any]:
    """The checkpoint to go on from; one of another config or base is refused."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise UserError(f"{path} is no complete checkpoint ({error}); delete it to train from the start") from error
    saved = state["hyper_parameters"]
    differing = [key for key in plain if saved["config"].get(key) != plain[key]] + ["base"] * (saved["base"] != base)
    if differing:
        raise UserError(
            f"{path}: trained with another {', '.join(differing)}; choose another name= or delete {path.parent.parent}"
        )
    return state


@hydra.main(config_path=conf_path(), config_name="train", version_base="1.3")
@command
def main(cfg: DictConfig) -> float:
    """Collect, train, evaluate and report, as the config asks."""
    config = load(cfg, TrainConfig)
    folder = Path(config.paths["output_dir"]) / config.name
    write_atomic(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    base, data, console = build(config.base), build(config.data), Console()
    if config.collect:
        sampling = build(config.sampling)
        console.rule("collect")
        collect(base, sampling, data, config.seed, config.evalset["num_classes"], trajectory_sampling(config.sampling))
    console.rule("train")
    error = fit(config, base, data)
    if config.evaluate and rank_zero_only.rank == 0:
        console.rule("evaluate")
        measured = study(cfg, config, base)
        measured.run()
        write_report([measured.results.path], folder / "report", baseline="", images=measured.preview)
    return error


if __name__ == "__main__":
    main()
