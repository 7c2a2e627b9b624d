"""The one sampling loop. Collecting, tracing and previews are observers of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from migm.accelerators.accelerator import Accelerator
from migm.bases.base import Base, Branch, Inputs, StepRecord, image_rows
from migm.runtime.kinds import Count
from migm.sampling.guidance import Guidance, combine
from migm.sampling.noise import KeyedNoise, Noise, Step
from migm.sampling.schedule import Schedule
from migm.sampling.select import Select, mask_ratio, split, without


class Draw(Protocol):
    def __call__(self, logits: Tensor, noise: Noise, step: Step, positions: Tensor) -> tuple[Tensor, Tensor]: ...


class Observer(Protocol):
    """Watches one generation; must not change what it is shown."""

    def on_step(self, record: StepRecord) -> None: ...


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: everything about a sample but the base, its inputs and the noise.

    `num_full_steps` (B) is read by accelerators only, which compare it with `num_steps` where they use it.
    `guidance` None samples the conditional branch alone.
    """

    num_steps: Count
    num_full_steps: Count
    schedule: Schedule
    draw: Draw
    select: Select
    guidance: Guidance | None = None


@torch.inference_mode()
def generate(
    base: Base,
    inputs: Inputs,
    sampling: Sampling,
    accelerator: Accelerator,
    noise: Noise,
    observers: Sequence[Observer] = (),
    initial: Tensor | None = None,
) -> Tensor:
    """Sample token grids for labels (b,) or b prompts -> tokens (b, l) in 0...v-1.

    `initial` (b, l) fills in an image: its tokens stay, its masks (v) are sampled, as many in
    every row; the schedule is that of a whole image and ends when nothing is masked any more.

    All shapes are known before the first step and nothing waits for the device. Revealed tokens
    never change; the confidence sampler of MaskGIT and Lumina-DiMOO (docs/originals/maskgit.md, Sampler).
    """
    spec, n = base.spec, sampling.num_steps
    branches = base.encode(inputs, guided=sampling.guidance is not None)
    counts = sampling.schedule.counts(spec.num_tokens, n)
    run = accelerator.start(base, branches, counts)
    tokens, masked = initial_state(base, len(inputs), initial)
    new_positions = masked[:, :0]
    extra = 0  # revealed beyond the plan, by ties
    for i, planned in enumerate(counts):
        count = min(max(planned - extra, 0), masked.shape[1])
        if not masked.shape[1]:
            break
        ratio = mask_ratio(masked, spec.num_tokens)
        features = run.features(i, tokens, new_positions, ratio)
        here = run.candidates(i, masked, count)
        logits = guided_logits(base, branches, features, here, sampling.guidance, i, n)
        drawn, log_prob = sampling.draw(logits, noise, i, here)
        scores = sampling.select(log_prob, noise, i, n, here)
        chosen, new_positions, left = split(scores, here, count, sampling.select.rule)
        run.scored(i, scores, here, chosen)
        masked = left if here is masked else without(masked, new_positions, spec.num_tokens)
        extra += new_positions.shape[1] - planned
        tokens = tokens.scatter(1, new_positions, drawn.gather(1, chosen))
        record = StepRecord(i, n, run.is_full(i), branches, features, tokens, new_positions, ratio)
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


def guided_logits(
    base: Base,
    branches: Sequence[Branch],
    features: Sequence[Tensor],
    positions: Tensor,
    guidance: Guidance | None,
    step: int,
    num_steps: int,
) -> Tensor:
    """Logits (b, k, v) of the guided distribution at image positions (b, k)."""
    rows = [image_rows(f, branch, positions) for branch, f in zip(branches, features, strict=True)]
    halves = [half for branch, r in zip(branches, rows, strict=True) for half in r.chunk(branch.copies)]
    scale = guidance.scale(step, num_steps) if guidance else 0.0
    if guidance is None or not scale:
        return base.head(halves[0], positions)
    if guidance.on == "features":  # the head is affine: half the work
        return base.head(combine(halves[0], halves[1], scale), positions)
    conditional, unconditional = (base.head(half, positions) for half in halves)
    return (1 + scale) * conditional - scale * unconditional


def generate_images(base: Base, inputs: Inputs, images: Tensor, seed: int, **rest: Any) -> Tensor:
    """Tokens for `inputs` with the noise of the images numbered `images` (b,) in the run of `seed`."""
    return generate(base, inputs, noise=KeyedNoise(seed, images.to(base.device)), **rest)
