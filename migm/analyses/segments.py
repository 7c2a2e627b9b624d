"""Segment errors: how far a predictor is from the base at each step after every choice of its last full steps."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from migm.accelerators.placement import History, follows, histories
from migm.accelerators.predictor import LayerState, Predictor, PredictorState
from migm.accelerators.runs import start
from migm.analyses.forcing import MOST_LOGITS, Features, log_probabilities, relative_error
from migm.bases.base import Base, Branch, StepRecord
from migm.runtime.errors import UserError
from migm.runtime.shapes import Positions
from migm.sampling.sampler import Sampler
from migm.sampling.select import without

SEGMENT_ERRORS = ("kl_revealed", "kl_masked", "error")


class Segment(NamedTuple):
    """A cheap step, and the last full steps before it."""

    history: History
    step: int


def segments(num_steps: int, memory: int, max_gap: int) -> list[Segment]:
    """Return all segments in the order in which their errors are written: by history, then by step."""
    known = histories(num_steps, memory, max_gap)
    return [Segment(history, step) for history in known for step in follows(history, num_steps, max_gap)]


def memory_of(predictor: Predictor, base: Base) -> int:
    """Return the number of last full steps that predictions depend on, at least 1.

    A predictor says it as `history`, or as `history_of(base)` where the base's weights decide.
    """
    of_base = getattr(predictor, "history_of", None)
    return max(1, of_base(base) if of_base else int(getattr(predictor, "history", 1)))


def refuse_layers(sampler: Sampler, branches: Sequence[Branch]) -> None:
    """Raise a UserError for a predictor that keeps values of the base's layers."""
    predictor = sampler.accelerator.predictor
    assert predictor is not None  # for the type checker
    state = start(predictor, sampler.base, branches[0], sampler.accelerator.name)
    if isinstance(state, LayerState):
        raise UserError(
            f"accelerator={sampler.accelerator.name} keeps values of layers at its full steps; segment errors are "
            "measured of predictors that know the features of full steps alone"
        )


class SegmentWalk:
    """Observer of a true trajectory: from every history on, the predictor goes on to each step that may follow.

    What was revealed and the features of full steps are true; cheap steps go on from each other as in sampling. Alive
    are the histories that end in the last `max_gap` steps, and with them the features of their full steps. `advance` is
    told the number of predictions that were compared.
    """

    def __init__(self, sampler: Sampler, memory: int, max_gap: int, advance: Callable[[int], None] = lambda done: None):
        self.sampler, self.memory, self.max_gap, self.advance = sampler, memory, max_gap, advance
        self.every = histories(sampler.num_steps, memory, max_gap)
        self.states: dict[History, list[PredictorState]] = {}
        self.kept: dict[int, Features] = {}  # of the steps from which a later full step may need them
        self.found: dict[Segment, Float[Tensor, "b m"]] = {}
        self.images = 0

    def on_step(self, record: StepRecord) -> None:
        base, t = self.sampler.base, record.index
        if not self.images:
            self.images = len(record.tokens)
            all_masked = torch.arange(base.spec.num_tokens, device=record.tokens.device)
            self.masked = all_masked.expand(self.images, -1)
            self.new = self.masked[:, :0]
        before = record.tokens_before(base.spec.vocab_size)
        self.states = {h: states for h, states in self.states.items() if t - h[-1] <= self.max_gap}
        predicted = (
            (h, [state.predict(t, before, self.new, record.moment) for state in states])
            for h, states in self.states.items()
        )
        for history, values in compared(self.sampler, record, predicted, self.masked):
            self.found[Segment(history, t)] = values.cpu()
            self.advance(self.images)
        self._full(record)
        self.new = record.new_positions
        self.masked = without(self.masked, self.new, base.spec.num_tokens)

    def errors(self) -> Float[Tensor, "b s m"]:
        """Return the `SEGMENT_ERRORS` of each image at all segments; 0 at steps that ties took away."""
        none = torch.zeros(self.images, len(SEGMENT_ERRORS), dtype=torch.float64)
        every = segments(self.sampler.num_steps, self.memory, self.max_gap)
        return torch.stack([self.found.get(segment, none) for segment in every], 1)

    def _full(self, record: StepRecord) -> None:
        """Start the histories that end in a full step at this one."""
        t = record.index
        self.kept[t] = record.features
        reach = (self.memory - 1) * (self.max_gap + 1)  # back to the first step of a history
        self.kept = {step: features for step, features in self.kept.items() if t - step <= reach}
        if t == record.num_steps - 1:
            return
        for history in self.every:
            if history[-1] == t:
                self.states[history] = self._started(history, record.branches)

    def _started(self, history: History, branches: Sequence[Branch]) -> list[PredictorState]:
        accelerator = self.sampler.accelerator
        assert accelerator.predictor is not None  # for the type checker
        states = []
        for i, branch in enumerate(branches):
            state = start(accelerator.predictor, self.sampler.base, branch, accelerator.name, self.sampler.fast)
            for step in history:
                state.update(step, self.kept[step][i])
            states.append(state)
        return states


def compared(
    sampler: Sampler, record: StepRecord, predicted: Iterable[tuple[History, Features]], masked: Positions
) -> Iterator[tuple[History, Float[Tensor, "b m"]]]:
    """Yield the `SEGMENT_ERRORS` of each prediction for every image.

    - `kl_revealed`: the sum of KL(true, predicted) over the positions that the step reveals, in nats.
    - `kl_masked`: its mean over all masked positions, in nats.
    - `error`: squared distance of the features at masked positions over their squared length.

    Distributions are those of guided logits. Without logits of many positions at a time in memory, those of the true
    features are made once.
    """
    b, v = len(masked), sampler.base.spec.vocab_size
    parts = masked.split(max(1, MOST_LOGITS // (b * v)), 1)
    once = len(parts) == 1
    true = [log_probabilities(sampler, record, record.features, part) for part in parts[:1]]
    true.append(true[0].exp())
    for history, features in predicted:
        rows = []
        for part in parts:
            if not once:
                p = log_probabilities(sampler, record, record.features, part)
                true = [p, p.exp()]
            rows.append((true[1] * (true[0] - log_probabilities(sampler, record, features, part))).sum(-1).double())
        kl = torch.cat(rows, 1)
        of_position = kl.new_zeros(b, sampler.base.spec.num_tokens).scatter(1, masked, kl)
        revealed = of_position.gather(1, record.new_positions).sum(1)
        error = relative_error(record.branches, record.features, features, masked)
        yield history, torch.stack([revealed, kl.mean(1), error.to(kl)], 1)
