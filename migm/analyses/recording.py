"""What every analysis starts from: image rows of the features of whole generations, forked ones included."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.refresh import Always
from migm.bases.base import Base, StepRecord, image_rows
from migm.bases.inputs import InputSource
from migm.evaluation.cost import Point
from migm.sampling.loop import Sampling, generate
from migm.sampling.noise import KeyedNoise, Noise, Step


@dataclass(frozen=True)
class Setting:
    """What an analysis looks at; `points` are the configurations that some of them compare."""

    base: Base
    sampling: Sampling
    inputs: InputSource
    points: Sequence[Point]
    seed: int


class Analysis(Protocol):
    def run(self, setting: Setting, figure: Path) -> dict[str, object]:
        """Draw `figure` and return the numbers to quote."""
        ...


class Recorder:
    """An observer that keeps float32 rows of the first guidance half, which is the conditional one."""

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
class Trajectories:
    """Of b images and n steps: `features` (b, n, l, c); `revealed` likewise, the embeddings of the step's new tokens.

    Rows whose token the step did not reveal are 0 in `revealed`.
    """

    features: Tensor
    revealed: Tensor


class ForkedNoise:
    """The noise of one run up to a step, from there that of another."""

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


def record(setting: Setting, images: Tensor, fork: tuple[int, int] | None = None) -> Trajectories:
    """Vanilla trajectories of the images `images` (b,); `fork` = (step, run) takes that run's noise from a step on."""
    base, recorder = setting.base, Recorder(setting.base)
    noise: Noise = KeyedNoise(setting.seed, images.to(base.device))
    if fork:
        step, run = fork
        noise = ForkedNoise(noise, KeyedNoise(setting.seed + 1000 * run, images.to(base.device)), step)
    generate(base, setting.inputs(images), setting.sampling, Accelerator(Always()), noise, [recorder])
    return Trajectories(torch.stack(recorder.features, 1), torch.stack(recorder.revealed, 1))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity along the last dimension, with broadcasting."""
    return (normalize(a, dim=-1) * normalize(b, dim=-1)).sum(-1)


def step_lengths(features: Tensor) -> Tensor:
    """Distances (b, n - 1) between the features (b, n, l, c) of consecutive steps."""
    return features.diff(dim=1).flatten(2).norm(dim=-1)
