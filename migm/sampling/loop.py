"""The one sampling loop. Collecting, tracing and previews are observers of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from migm.accelerators.accelerator import Accelerator
from migm.bases.base import Base, Branch, StepRecord
from migm.sampling.guidance import Guidance, combine
from migm.sampling.noise import KeyedNoise, Noise
from migm.sampling.schedule import Schedule
from migm.sampling.select import mask_ratio, split


class Draw(Protocol):
    def __call__(self, logits: Tensor, noise: Noise, step: int, positions: Tensor) -> tuple[Tensor, Tensor]: ...


class Select(Protocol):
    def __call__(self, log_prob: Tensor, noise: Noise, step: int, num_steps: int, positions: Tensor) -> Tensor: ...


class Observer(Protocol):
    """Watches one generation; must not change what it is shown."""

    def on_step(self, record: StepRecord) -> None: ...


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: everything about a sample but the base, the labels and the noise.

    `num_full_steps` (B) is read by accelerators only. `guidance` None samples the conditional
    branch alone.
    """

    num_steps: int
    num_full_steps: int
    schedule: Schedule
    draw: Draw
    select: Select
    guidance: Guidance | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_full_steps <= self.num_steps:
            raise ValueError(
                f"sampling.num_full_steps={self.num_full_steps} must be between 1 and "
                f"sampling.num_steps={self.num_steps}"
            )


@torch.inference_mode()
def generate(
    base: Base,
    labels: Tensor,
    sampling: Sampling,
    accelerator: Accelerator,
    noise: Noise,
    observers: Sequence[Observer] = (),
) -> Tensor:
    """Sample token grids for labels (b,) -> tokens (b, l) in 0...v-1.

    All shapes are known before the first step and nothing waits for the device. Revealed tokens
    never change; the confidence sampler of MaskGIT and Lumina-DiMOO (methods.md section 0).
    """
    spec, n = base.spec, sampling.num_steps
    counts = sampling.schedule.counts(spec.num_tokens, n)
    branches = base.encode(labels, guided=sampling.guidance is not None)
    run = accelerator.start(base, branches, n)
    device, b = base.device, len(labels)
    tokens = torch.full((b, spec.num_tokens), spec.vocab_size, device=device)
    masked = torch.arange(spec.num_tokens, device=device).expand(b, -1)
    new_positions = masked[:, :0]
    for i, count in enumerate(counts):
        ratio = mask_ratio(masked, spec.num_tokens)
        features = run.features(i, tokens, new_positions, ratio)
        scale = sampling.guidance.scale(i, n) if sampling.guidance else 0.0
        logits = base.head(guided(branches, features, scale), masked)
        drawn, log_prob = sampling.draw(logits, noise, i, masked)
        scores = sampling.select(log_prob, noise, i, n, masked)
        chosen, new_positions, masked = split(scores, masked, count)
        tokens = tokens.scatter(1, new_positions, drawn.gather(1, chosen))
        record = StepRecord(i, n, run.plan[i], features, tokens, new_positions, ratio)
        for observer in observers:
            observer.on_step(record)
    return tokens


def guided(branches: Sequence[Branch], features: Sequence[Tensor], scale: float) -> Tensor:
    """Features of the guided distribution (b, t, c): the head is linear, so guidance may come before it."""
    halves = [half for branch, f in zip(branches, features, strict=True) for half in f.chunk(branch.copies)]
    return combine(halves[0], halves[1], scale) if len(halves) == 2 and scale else halves[0]


def generate_images(base: Base, labels: Tensor, images: Tensor, seed: int, **rest: Any) -> Tensor:
    """Tokens for `labels` (b,) with the noise of the images numbered `images` (b,) in the run of `seed`."""
    return generate(base, labels, noise=KeyedNoise(seed, images.to(base.device)), **rest)
