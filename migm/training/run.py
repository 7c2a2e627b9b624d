"""Run the training of a shortcut: check its config, resume, train, validate and write the weights."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import WandbLogger

from migm.bases.base import Base, block_parameters
from migm.bases.inputs import InputSource
from migm.config.building import build
from migm.config.earlier import by_name, describes_run, training_data
from migm.config.roots import TrainConfig
from migm.runtime.compiling import notice
from migm.runtime.device import pick_precision
from migm.runtime.distributed import first_console
from migm.runtime.errors import UserError
from migm.runtime.files import refuse_other_format
from migm.runtime.launch import in_sweep, launched
from migm.runtime.reading import read_text
from migm.runtime.resources import refuse_full_disk, refuse_full_memory
from migm.sampling.sampler import Sampler
from migm.shortcuts.checkpoint import FORMAT, save_shortcut, start_from
from migm.shortcuts.network import ShortcutNetwork, reads_full_steps
from migm.training.checkpoints import Checkpoints, newest
from migm.training.course import check_course
from migm.training.module import WANDB_RUN, ShortcutModule
from migm.training.objective import GuidedObjective, Objective
from migm.trajectories.datamodule import TrajectoryData
from migm.trajectories.loader import whole


class Training:
    """One training of a shortcut; built before any work, so that a bad config is refused at once."""

    def __init__(self, config: TrainConfig, base: Base):
        self.base, self.console = base, first_console()
        self.folder = Path(config.paths["output_dir"]) / config.name
        self.weights, self.resume = self.folder / "shortcut.safetensors", self.folder / "checkpoints" / "resume.ckpt"
        plain = training_config(config)
        self.state: dict[str, Any] = {"global_step": 0}
        self.checkpoint, self.damaged = newest(self.resume)
        if self.checkpoint:
            self.state = check_resume(self.checkpoint, plain, base.fingerprint())
        else:
            refuse_other_format(self.weights, FORMAT, f"name={config.name}: ")
            described = self.folder / "config.yaml"
            if described.exists() and not describes_run(read_text(described)):
                raise UserError(f"name={config.name}: {described} is there, and not of migm; choose another name")
        torch.manual_seed(config.seed)  # the shortcut does not depend on the random numbers that the base used
        shortcut, objective = build(config.shortcut), build(config.objective)
        guidance = build(config.sampling).guidance
        self.together = halves_together(objective, config.data, guidance is not None)
        if not isinstance(shortcut, ShortcutNetwork):
            raise UserError(
                f"shortcut is a {type(shortcut).__name__}, whose file could not be loaded again; derive it from "
                "migm.shortcuts.network.ShortcutNetwork"
            )
        if shortcut.config["channels"] != base.spec.channels:
            raise UserError(
                f"shortcut.channels={shortcut.config['channels']}, but this base has {base.spec.channels}; "
                "choose the shortcut that belongs to it"
            )
        if reads_full_steps(shortcut):
            refuse_unfit(shortcut, objective, config.sampling["num_steps"])
        shortcut.calibrate(embeddings(base, build(config.data["inputs"])))
        if config.warm_start is not None and not self.checkpoint:
            start_from(shortcut, config.warm_start, base.fingerprint(), "warm_start")
        optimizer, lr_schedule = build(config.optimizer), build(config.lr_schedule)
        self.fast = build(config.runtime).fast(base.device, block_parameters(base.spec))
        self.module = ShortcutModule(shortcut, base, objective, optimizer, lr_schedule, plain, self.fast, guidance)
        self.max_steps = config.trainer["max_steps"]
        self.ended = False  # whether this start reached the end of the training
        self.seconds: float | None = None  # of all steps, extrapolated from the steps made by this start
        callbacks, loggers = build(config.callbacks), build(going_on(config.logger, self.state.get(WANDB_RUN)))
        remark = check_course(self.module.configure_optimizers(), callbacks, config.callbacks, self.max_steps)
        if remark:
            self.console.print(remark, style="yellow")
        # before all other callbacks, since averaging then replaces the weights
        last = LambdaCallback(on_train_end=self._save_last)
        parts = {"callbacks": [last, *callbacks.values()], "logger": list(loggers.values())}
        overrides = {"precision": pick_precision(config.trainer["precision"], base.device), **parts}
        self.resolved = asdict(config)
        self.trainer: L.Trainer = build({**config.trainer, **overrides, "default_root_dir": str(self.folder)})
        self.followed = [logger for logger in self.trainer.loggers if isinstance(logger, WandbLogger)]
        refuse_other_number(self.trainer, config.trainer["devices"], config.trainer["num_nodes"])

    def run(self, data: TrajectoryData) -> float:
        """Train, or go on from the last checkpoint; write the averaged weights; return the validation error."""
        data.together = self.together
        data.serve(self.module.shortcut)
        for path in self.damaged:
            message = f"{path} is damaged (SHA-256 differs): an older checkpoint is used"
            self.console.print(message, style="yellow")
        if self.state["global_step"] < self.max_steps:
            self._fit(data)
        else:  # the training had ended: its checkpoint holds the averaged weights
            self.console.print(f"trained already: {self.checkpoint}")
            self.module.load_state_dict(self.state["state_dict"])
        if self.trainer.is_global_zero:  # also when trained already, since the old file may be outdated or damaged
            save_shortcut(self.module.shortcut, self.base.fingerprint(), self.weights)
            self.console.print(f"shortcut in {self.weights}, time of every part in {self.folder / 'fit-profile.txt'}")
        # Validates on the processes that trained, each with its share of the pairs, but without loggers, whose runs
        # have ended.
        trained, device = self.trainer, "cpu" if self.base.device.type == "cpu" else "auto"
        several = {"num_nodes": trained.num_nodes, "strategy": "ddp" if trained.world_size > 1 else "auto"}
        checker = L.Trainer(accelerator=device, devices=trained.num_devices, **several, **QUIET)
        return float(checker.validate(self.module, data, verbose=False)[0]["val/feature_mse"])

    def close(self) -> None:
        """End the runs in W&B."""
        for logger in self.followed:
            if logger._experiment is not None:  # `experiment` would begin a run
                logger.experiment.finish()
        self.followed = []

    def refuse_without_room(self) -> None:
        """Refuse to start if weights, gradients, average, moments and checkpoints will not fit."""
        weights = sum(p.numel() * p.element_size() for p in self.module.parameters())
        what, remedy = "shortcut: its training", "free some, or choose a smaller one"
        on_cpu = self.base.device.type == "cpu"
        refuse_full_memory((9 if on_cpu else 4) * weights, what, remedy)  # 4 for the copy that becomes a checkpoint
        kept = sum(getattr(c, "keep", 0) + 1 for c in self.trainer.checkpoint_callbacks)
        refuse_full_disk(self.folder, 4 * weights * kept, what, f"{remedy}, or another paths.output_dir")

    def _fit(self, data: TrajectoryData) -> None:
        if self.checkpoint:
            self.console.print(f"resuming from {self.checkpoint}, step {self.state['global_step']}")
        if note := notice(self.fast):
            self.console.print(note)
        # under a name that Lightning does not use: it logs the module's `config` and `base`
        for logger in self.followed:
            logger.log_hyperparams({"resolved": self.resolved})
        start = time.perf_counter()
        try:
            with ExitStack() as stack:
                for callback in self.trainer.checkpoint_callbacks:
                    if isinstance(callback, Checkpoints):
                        stack.enter_context(callback.listening())
                self.trainer.fit(self.module, data, ckpt_path=self.checkpoint, weights_only=True)
        except SystemExit as stop:  # Lightning raises it on Ctrl-C
            raise KeyboardInterrupt from stop
        finally:
            if not in_sweep():  # a sweep's points are logged in the same runs
                self.close()
        if self.trainer.global_step < self.max_steps:
            if not self.trainer.global_step:
                raise UserError(
                    "the training made no step, and untrained weights are not saved: see trainer.limit_train_batches, "
                    "trainer.max_epochs and the like"
                )
            end = f"the training ended at step {self.trainer.global_step} of trainer.max_steps={self.max_steps}"
            self.console.print(f"{end}, by another key of trainer or a callback", style="yellow")
        steps = self.trainer.global_step - self.state["global_step"]
        self.seconds = (time.perf_counter() - start) * self.max_steps / max(steps, 1)
        if not self.ended:  # no step was left: the module needs the weights to go on with
            self.module.load_state_dict(self.state["state_dict"])

    def _save_last(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        """Save the weights to go on with, before the averaged weights replace them at the end of a training."""
        trainer.save_checkpoint(self.resume)
        self.ended = True


def going_on(logger: Mapping[str, Any], run: str | None) -> dict[str, Any]:
    """Return a config's `logger` that goes on with the W&B run of this id, unless the config names a run."""
    if "wandb" not in logger:
        return dict(logger)
    node = dict(logger["wandb"])
    if node.get("offline"):  # Lightning sets only a variable, which W&B reads when its process begins
        node.setdefault("mode", "offline")
    if run is not None and not node.get("id") and not node.get("version"):
        node |= {"id": run, "resume": "allow"}
    return {**logger, "wandb": node}


def collect_and_train(config: TrainConfig, training: Training, sampler: Sampler, data: TrajectoryData) -> float:
    """Fill the store of `data` by the vanilla sampler if the config asks for it, train, and return the error."""
    data.attach(sampler, config.seed)
    data.serve(training.module.shortcut)
    if config.collect:
        training.console.rule("collect")
    data.storage.prepare(sampler, data, config.seed, training.max_steps, config.collect)
    training.console.rule("train")
    return training.run(data)


def halves_together(objective: Objective, data: Mapping[str, Any], guided: bool) -> bool:
    """Return whether both guidance halves of an image go into one batch: as `data` says, or as the objective needs.

    UserError where these differ, and for a batch that would split an image. Without guidance there is one half.
    """
    needed, asked = isinstance(objective, GuidedObjective) and objective.together, data.get("halves")
    if needed and asked == "apart":
        raise UserError(
            "data.halves=apart, but the objective compares guided logits, for which both guidance halves of an image "
            "are in one batch; leave data.halves out"
        )
    together = needed or asked == "together"
    whole(data["batch_size"], 2 if together and guided else 1)
    return together


def refuse_unfit(shortcut: ShortcutNetwork, objective: Any, num_steps: int) -> None:
    """Raise a UserError if a shortcut that starts from full steps does not fit the objective or the trajectories."""
    if shortcut.max_gap >= num_steps:
        raise UserError(
            f"shortcut.max_gap={shortcut.max_gap} must be from 1 to {num_steps - 1}, sampling.num_steps - 1: both "
            "steps of a pair are of one trajectory"
        )
    if getattr(objective, "rollout", None):
        raise UserError(
            f"objective.rollout goes on from the shortcut's own steps, but a {type(shortcut).__name__} starts each "
            "from full ones; choose objective=mse or mse_kl, or a shortcut that is chained"
        )


def refuse_other_number(trainer: L.Trainer, devices: Any, num_nodes: int) -> None:
    """Raise a UserError if a launcher started other processes than `trainer` wants: each would train by itself."""
    started = launched()[1]
    if started > 1 and trainer.world_size != started:
        raise UserError(
            f"{started} processes were started, but trainer.devices={devices} and trainer.num_nodes={num_nodes} make "
            f"{trainer.world_size}; set them to the processes of a machine and the number of machines, and "
            "trainer.strategy=ddp"
        )


def embeddings(base: Base, inputs: InputSource) -> torch.Tensor:
    """Return the base's input embeddings of every token of the vocabulary (1, v, c)."""
    every = torch.arange(base.spec.vocab_size, device=base.device)[None]
    branch = base.encode(inputs(torch.zeros(1, dtype=torch.long)), guided=False)[0]
    new = base.control(every, every % base.spec.num_tokens, branch)
    return new.embeddings[:, new.prompt :]


QUIET: dict[str, Any] = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "use_distributed_sampler": False,
}


def training_config(config: TrainConfig) -> dict[str, Any]:
    """Return the part of a config that a resumed training must share with its checkpoint."""
    keys = ("seed", "shortcut", "objective", "optimizer", "lr_schedule", "data")
    plain = {key: by_name(getattr(config, key)) for key in keys}
    plain["data"] = training_data(plain["data"])
    plain["sampling"] = {key: value for key, value in by_name(config.sampling).items() if key != "num_full_steps"}
    plain["max_steps"], plain["warm_start"] = config.trainer["max_steps"], config.warm_start
    return plain


def check_resume(path: Path, plain: dict[str, Any], base: str) -> dict[str, Any]:
    """Load the checkpoint to go on from; a checkpoint of another config or base is refused."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved = state["hyper_parameters"]
        _ = saved["config"], saved["base"], state["global_step"]
    except (RuntimeError, EOFError, UnpicklingError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no checkpoint of a training ({error}); delete it to train from the start"
        ) from error
    before = {key: by_name(value) for key, value in saved["config"].items()}
    before["data"] = training_data(before.get("data"))
    differing = [key for key in plain if before.get(key) != plain[key]] + ["base"] * (saved["base"] != base)
    if differing:
        raise UserError(
            f"{path}: trained with another {', '.join(differing)}; choose another name= or delete {path.parent.parent}"
        )
    return state
