"""The one sampling loop. Collecting, tracing and previews are observers of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from migm.accelerators.accelerator import Accelerator
from migm.bases.base import Base, Branch, StepRecord
from migm.sampling.guidance import Guidance, combine
from migm.sampling.noise import KeyedNoise, Noise, Step
from migm.sampling.schedule import Schedule
from migm.sampling.select import mask_ratio, split


class Draw(Protocol):
    def __call__(self, logits: Tensor, noise: Noise, step: Step, positions: Tensor) -> tuple[Tensor, Tensor]: ...


class Select(Protocol):
    def __call__(self, log_prob: Tensor, noise: Noise, step: Step, num_steps: int, positions: Tensor) -> Tensor: ...


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
    initial: Tensor | None = None,
) -> Tensor:
    """Sample token grids for labels (b,) -> tokens (b, l) in 0...v-1.

    `initial` (b, l) fills in an image: its tokens stay, its masks (v) are sampled, as many in
    every row; the schedule is that of a whole image and ends when nothing is masked any more.

    All shapes are known before the first step and nothing waits for the device. Revealed tokens
    never change; the confidence sampler of MaskGIT and Lumina-DiMOO (methods.md section 0).
    """
    spec, n = base.spec, sampling.num_steps
    branches = base.encode(labels, guided=sampling.guidance is not None)
    run = accelerator.start(base, branches, n)
    tokens, masked = initial_state(base, len(labels), initial)
    new_positions = masked[:, :0]
    for i, count in enumerate(sampling.schedule.counts(spec.num_tokens, n)):
        count = min(count, masked.shape[1])
        if not count:
            break
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
    # A base that offers the mask as a token (MaskGIT v1.0) may have drawn it.
    return tokens.clamp(max=spec.vocab_size - 1)


def initial_state(base: Base, batch: int, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """The tokens (b, l) before the first step and the positions (b, k) that are masked in them, ascending."""
    shape, mask = (batch, base.spec.num_tokens), base.spec.vocab_size
    if initial is None:
        return torch.full(shape, mask, device=base.device), torch.arange(shape[1], device=base.device).expand(shape)
    tokens = initial.to(base.device)
    if tokens.shape != shape or int(tokens.min()) < 0 or int(tokens.max()) > mask:
        raise ValueError(f"initial of shape {tuple(tokens.shape)} must be {shape} ids from 0 to {mask}, the mask")
    counts = (tokens == mask).sum(1)
    if len(counts.unique()) > 1:
        raise ValueError(
            f"initial has between {int(counts.min())} and {int(counts.max())} masked tokens; "
            "the images of one batch need the same number"
        )
    return tokens, (tokens == mask).nonzero()[:, 1].view(batch, -1)


def guided(branches: Sequence[Branch], features: Sequence[Tensor], scale: float) -> Tensor:
    """Features of the guided distribution (b, t, c): the head is linear, so guidance may come before it."""
    halves = [half for branch, f in zip(branches, features, strict=True) for half in f.chunk(branch.copies)]
    return combine(halves[0], halves[1], scale) if len(halves) == 2 and scale else halves[0]


def generate_images(base: Base, labels: Tensor, images: Tensor, seed: int, **rest: Any) -> Tensor:
    """Tokens for `labels` (b,) with the noise of the images numbered `images` (b,) in the run of `seed`."""
    return generate(base, labels, noise=KeyedNoise(seed, images.to(base.device)), **rest)
