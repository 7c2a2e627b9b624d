"""Train a shortcut in Python: the training of `migm.train`, without its evaluation and report."""

from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from migm.accelerators.predictors.shortcut import Shortcut
from migm.bases.base import Base
from migm.config.roots import TrainConfig
from migm.door.configs import NAME, built, config_of, hydra_on_our_tree, random_state
from migm.door.loading import load_shortcut
from migm.runtime.errors import quiet_lightning
from migm.runtime.writing import writing
from migm.sampling.sampler import Sampler
from migm.training.run import Training, collect_and_train


def train_shortcut(
    base: Base,
    num_images: int | None = None,
    max_steps: int | None = None,
    folder: str | Path = "run",
    overrides: Mapping[str, Any] | None = None,
) -> Shortcut:
    """Collect trajectories of `num_images` images, train for `max_steps` steps, return the shortcut.

    `folder` holds all files: trajectories, checkpoints, `shortcut.safetensors`. A second call goes on where the first
    stopped. By default `num_images` and `max_steps` are those of the base's experiment; `overrides` change keys of its
    config, such as {"shortcut.depth": 2}. Raises UserError with the line that the command would print.
    """
    folder = Path(folder)
    changes: dict[str, Any] = {
        "name": folder.name,
        "paths.output_dir": str(folder.parent),
        "data.folder": str(folder / "trajectories"),
        "device": base.device.type,
    }
    changes |= {"data.num_images": num_images} if num_images is not None else {}
    changes |= {"trainer.max_steps": max_steps} if max_steps is not None else {}
    if not hasattr(base, NAME):
        changes |= {"shortcut.channels": base.spec.channels, "shortcut.num_positions": base.spec.num_tokens}
    config = config_of(TrainConfig, base, {**changes, **(overrides or {})})
    with ExitStack() as stack:
        for context in (random_state(), quiet_lightning(), hydra_on_our_tree()):
            stack.enter_context(context)
        stack.enter_context(writing(folder, f"folder={folder}", folder=True))
        data, sampler = built(config.data), Sampler(base, built(config.sampling), runtime=built(config.runtime))
        training = stack.enter_context(closing(Training(config, base)))
        training.refuse_without_room()
        collect_and_train(config, training, sampler, data)
    return load_shortcut(training.weights, base)
