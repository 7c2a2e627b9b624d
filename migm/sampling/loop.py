"""Sample images: `start` on the host, then `step` N times on the device. There is no other sampling loop.

Collecting, tracing and previews observe this loop; roll-outs in training call the same `step`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.order import Order
from migm.accelerators.runs import Run
from migm.bases.base import Base, Branch, Moment, OneStepBase, StepRecord, image_rows
from migm.runtime.compiling import Fast, as_it_is
from migm.runtime.errors import UserError
from migm.runtime.identity import identity
from migm.runtime.kinds import Count
from migm.runtime.shapes import Positions, Ratio, Tokens
from migm.sampling.draw import Draw
from migm.sampling.guidance import Guidance, On, Scale, combine, scale_at
from migm.sampling.noise import Noise, Step
from migm.sampling.order import AllMasked, Ordering
from migm.sampling.schedule import Schedule
from migm.sampling.select import Select, revealed, split, without


@dataclass(frozen=True)
class Sampling:
    """The rules that draw tokens: all that a sample depends on besides the base, its inputs and the noise.

    `num_full_steps` (B) is used by accelerators only, together with `num_steps`. `guidance` None samples from the
    conditional branch alone.
    """

    num_steps: Count
    num_full_steps: Count
    schedule: Schedule
    draw: Draw
    select: Select
    guidance: Guidance | None = None
    order: Ordering = field(default_factory=AllMasked)

    @property
    def identity(self) -> str:
        """The parts by name and parameters; records hold N and B separately."""
        return identity(self, "num_steps", "num_full_steps")


class Stepped(NamedTuple):
    """The tokens that one step drew at its candidates, and which of them it reveals."""

    drawn: Int[Tensor, "b k"]
    scores: Float[Tensor, "b k"]
    revealed: Bool[Tensor, "b k"]  # True at tokens that are revealed


class Written(NamedTuple):
    """The tokens after one step, and what it revealed, in ascending order of position."""

    tokens: Tokens
    chosen: Int[Tensor, "b _"]  # indices into the candidates
    positions: Int[Tensor, "b _"]
    left: Int[Tensor, "b _"]  # candidates that were not revealed


def step(
    base: Base,
    sampling: Sampling,
    branches: Sequence[Branch],
    features: Sequence[Float[Tensor, "cb _ c"]],
    positions: Positions,
    count: int | Int[Tensor, " b"],
    noise: Noise,
    index: Step,
    allowed: Bool[Tensor, "b k"] | None = None,
) -> Stepped:
    """Draw at the positions from the features of every branch, and choose what to reveal.

    Rows may be at different steps: then `index` and `count` are tensors, and only `allowed` positions are revealed.
    Nothing waits for the device.
    """
    logits = guided_logits(base, branches, features, positions, sampling.guidance, index, sampling.num_steps)
    drawn, log_prob = sampling.draw(logits, noise, index, positions, sampling.num_steps)
    scores = sampling.select(log_prob, noise, index, sampling.num_steps, positions)
    return Stepped(drawn, scores, revealed(scores, count, sampling.select.rule, allowed))


def write(tokens: Tokens, stepped: Stepped, candidates: Positions, number: int) -> Written:
    """Write the `number` revealed tokens; others never change (docs/originals/maskgit.md, Sampler)."""
    chosen, positions, left = split(stepped.revealed, candidates, number)
    return Written(tokens.scatter(1, positions, stepped.drawn.gather(1, chosen)), chosen, positions, left)


def start(
    base: Base,
    branches: Sequence[Branch],
    sampling: Sampling,
    accelerator: Accelerator,
    noise: Noise,
    initial: Int[Tensor, "_ _"] | None = None,
    fast: Fast = as_it_is,
) -> "Generation":
    """Plan every step of the encoded inputs, so that all shapes are known before the first step.

    `initial` is for in-painting: its tokens stay and its masks (v) are sampled; every row needs the same number
    of masks. The schedule is that of a whole image and ends as soon as nothing is masked. `fast` compiles functions.
    A `OneStepBase` begins with tokens of its own, and all of them are drawn.
    """
    batch = len(branches[0].rows) // branches[0].copies
    tokens, masked = initial_state(base, batch, initial)
    if isinstance(base, OneStepBase):
        if initial is not None:
            raise UserError(f"{type(base).__name__} draws every position anew, so that it cannot keep known tokens")
        branches, tokens = base.begin(branches, noise)
    counts = sampling.schedule.counts(base.spec.num_tokens, sampling.num_steps)
    run = accelerator.start(base, branches, counts, fast)
    order = run.order
    if order is None:
        order = sampling.order.start(base.spec, counts, noise)
    elif not isinstance(sampling.order, AllMasked):
        raise UserError(
            f"sampling.order={type(sampling.order).__name__}: accelerator={accelerator.name} ranks the positions itself"
        )
    return Generation(base, sampling, branches, counts, run, order, noise, fast, tokens, masked, masked[:, :0])


def refuse_steps(base: Base, num_steps: int) -> None:
    """Raise a UserError if a base that draws in one step is asked for more."""
    if isinstance(base, OneStepBase) and num_steps != 1:
        raise UserError(
            f"sampling.num_steps={num_steps}: {type(base).__name__} draws every position in one step; "
            "set sampling.num_steps=1"
        )


@dataclass
class Generation:
    """A batch during sampling: iterating makes its steps and yields their records for observers."""

    base: Base
    sampling: Sampling
    branches: Sequence[Branch]
    counts: Sequence[int]  # number of tokens that each step is to reveal
    run: Run
    order: Order
    noise: Noise
    fast: Fast
    tokens: Tokens
    masked: Positions  # ascending
    new_positions: Int[Tensor, "b _"]  # revealed by the last step
    index: int = 0
    extra: int = 0  # tokens revealed beyond the plan, because of ties

    def __iter__(self) -> Iterator[StepRecord]:
        while self.index < len(self.counts) and self.masked.shape[1]:
            yield self.step()

    def step(self) -> StepRecord:
        """Make one step."""
        i, planned, num_tokens = self.index, self.counts[self.index], self.base.spec.num_tokens
        count = min(max(planned - self.extra, 0), self.masked.shape[1])
        moment = Moment.at(i, len(self.counts), mask_ratio(self.masked, num_tokens))
        features = self.run.features(i, self.tokens, self.new_positions, moment)
        candidates = self.order.candidates(i, self.masked, count)
        draw = self.fast(step)
        stepped = draw(self.base, self.sampling, self.branches, features, candidates, count, self.noise, i)
        number = count if self.sampling.select.rule == "count" else int(stepped.revealed.sum())
        self.tokens, chosen, self.new_positions, left = self.fast(write)(self.tokens, stepped, candidates, number)
        self.order.scored(i, stepped.scores, candidates, chosen)
        self.masked = left if candidates is self.masked else without(self.masked, self.new_positions, num_tokens)
        self.extra += number - planned
        self.index += 1
        full = self.run.is_full(i)
        return StepRecord(i, full, self.branches, features, self.tokens, self.new_positions, moment)

    def finish(self) -> Tokens:
        """Make all steps that are left and return the tokens."""
        for _ in self:
            pass
        return self.result()

    def result(self) -> Tokens:
        """Return the tokens in 0...v-1; a base that may draw the mask itself (MaskGIT v1.0) gets v-1 for it."""
        return self.tokens.clamp(max=self.base.spec.vocab_size - 1)


def initial_state(base: Base, batch: int, initial: Int[Tensor, "_ _"] | None) -> tuple[Tokens, Positions]:
    """Return the tokens before the first step and their masked positions, ascending."""
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


def mask_ratio(masked: Positions, num_tokens: int) -> Ratio:
    """Return the share of each image that is still masked, 1 = all, from the masked positions."""
    return torch.full(masked.shape[:1], masked.shape[1] / num_tokens, device=masked.device)


def guided_logits(
    base: Base,
    branches: Sequence[Branch],
    features: Sequence[Float[Tensor, "cb _ c"]],
    positions: Positions,
    guidance: Guidance | None,
    index: Step,
    num_steps: int,
) -> Float[Tensor, "b k v"]:
    """Return guided logits at image positions; without guidance, those of the first branch."""
    rows = [image_rows(f, branch, positions) for branch, f in zip(branches, features, strict=True)]
    halves = [half for branch, r in zip(branches, rows, strict=True) for half in r.chunk(branch.copies)]
    scale = scale_at(guidance, index, num_steps)
    return logits_of(base, halves, positions, "features" if guidance is None else guidance.on, scale)


def logits_of(
    base: Base, halves: Sequence[Float[Tensor, "b k c"]], positions: Positions, on: On, scale: Scale
) -> Float[Tensor, "b k v"]:
    """Return guided logits of the features of guidance halves at image positions; at scale 0, those of the first."""
    if len(halves) == 1 or (not isinstance(scale, Tensor) and not scale):
        return base.head(halves[0], positions)
    if on == "features":  # the head is affine: half the work
        return base.head(combine(halves[0], halves[1], scale), positions)
    conditional, unconditional = (base.head(half, positions) for half in halves)
    guided = (1 + scale) * conditional - scale * unconditional
    return guided.to(conditional.dtype)  # from float32, if the rows are at different steps
