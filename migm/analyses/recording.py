"""Record image rows of features along whole generations, forked ones included, for all analyses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn.functional import normalize

from migm.bases.base import Base, StepRecord, image_rows
from migm.bases.inputs import InputSource
from migm.sampling.noise import Noise, Step
from migm.sampling.sampler import Observer, Sampler

COLOURS = "viridis"  # colour map of steps, early to late


@dataclass(frozen=True)
class Setting:
    """The vanilla sampler to analyse, and the `samplers` that some analyses compare; `bar` shows progress."""

    vanilla: Sampler
    inputs: InputSource
    samplers: Sequence[Sampler]
    seed: int
    bar: Progress | None = None

    def advance(self, what: str, total: int) -> Callable[[int], None]:
        """Show the progress of an analysis of many images: the result adds to the done steps of images."""
        if self.bar is None:
            return lambda steps: None
        bar, task = self.bar, self.bar.add_task(what, total=total, unit="steps of images")
        return lambda steps: bar.advance(task, steps)

    def watch(self, sampler: Sampler, images: Tensor, observer: Observer) -> None:
        """Generate the images numbered `images` (b,) while the observer watches."""
        sampler.tokens(self.inputs(images), sampler.noise(self.seed, images), [observer])


class Analysis(Protocol):
    """An analysis that compares the points of the config has `needs_points = True`; without it there may be none."""

    def run(self, setting: Setting, figure: Path) -> dict[str, object]:
        """Draw `figure` and return the numbers to quote."""
        ...


class RowRecorder:
    """Observer that keeps float32 image rows of the first guidance half, the conditional one."""

    def __init__(self, base: Base):
        self.base = base
        self.features: list[Tensor] = []
        self.revealed: list[Tensor] = []

    def on_step(self, record: StepRecord) -> None:
        b, branch, new = len(record.tokens), record.branches[0], record.new_positions
        rows = image_rows(record.features[0], branch)[:b].float().cpu()
        control = self.base.control(record.tokens.gather(1, new), new, branch)
        embeddings = control.embeddings[:b, control.prompt :].float().cpu()
        places = new.cpu()[..., None].expand_as(embeddings)
        self.features.append(rows)
        self.revealed.append(torch.zeros_like(rows).scatter(1, places, embeddings))


@dataclass(frozen=True)
class RowTrajectories:
    """Features and new tokens of b images at n steps, both (b, n, l, c).

    `revealed` holds the embeddings of the tokens that the step reveals, and 0 in all other rows.
    """

    features: Tensor
    revealed: Tensor


class ForkedNoise:
    """Noise `before` up to a step, and noise `after` from that step on."""

    def __init__(self, before: Noise, after: Noise, step: int):
        self.before, self.after, self.step = before, after, step

    def uniform(self, purpose: int, step: Step, positions: Tensor, width: int | None = None) -> Tensor:
        return self._at(step).uniform(purpose, step, positions, width)

    def gumbel(
        self, purpose: int, step: Step, positions: Tensor, width: int | None = None, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        return self._at(step).gumbel(purpose, step, positions, width, dtype)

    def _at(self, step: Step) -> Noise:
        return self.after if int(step) >= self.step else self.before


def record(setting: Setting, images: Tensor, fork: tuple[int, int] | None = None) -> RowTrajectories:
    """Record vanilla trajectories of `images` (b,); `fork` = (step, run) takes the noise of `run` from a step on."""
    sampler, recorder = setting.vanilla, RowRecorder(setting.vanilla.base)
    noise: Noise = sampler.noise(setting.seed, images)
    if fork:
        step, run = fork
        noise = ForkedNoise(noise, sampler.noise(setting.seed + 1000 * run, images), step)
    sampler.tokens(setting.inputs(images), noise, [recorder])
    return RowTrajectories(torch.stack(recorder.features, 1), torch.stack(recorder.revealed, 1))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine similarity along the last dimension, with broadcasting."""
    return (normalize(a, dim=-1) * normalize(b, dim=-1)).sum(-1)


def step_lengths(features: Tensor) -> Tensor:
    """Return distances (b, n - 1) between the features (b, n, l, c) of consecutive steps."""
    return features.diff(dim=1).flatten(2).norm(dim=-1)
