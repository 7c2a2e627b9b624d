"""Force the tokens of true trajectories on accelerators, and compare their predictions with the base."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from migm.accelerators.order import RankedSets
from migm.accelerators.runs import Run
from migm.bases.base import Branch, StepRecord, image_rows
from migm.config.earlier import sampling_identity
from migm.runtime.errors import UserError
from migm.runtime.shapes import Positions, Tokens
from migm.sampling import agreement
from migm.sampling.agreement import MOST_LOGITS, Sums, divergence, means
from migm.sampling.loop import guided_logits
from migm.sampling.sampler import Sampler
from migm.sampling.select import without
from migm.trajectories.store import MANIFEST, Store

Features = Sequence[Float[Tensor, "cb _ c"]]  # of every branch

MEASURES = ("error", "kl", "entropy", "equal_top", "marginal_entropy")


class Truth(NamedTuple):
    """True trajectories of a batch, step by step."""

    records: Iterable[StepRecord]
    order: Tokens | None = None  # the step that reveals each token, if it is known ahead


class Measured(NamedTuple):
    """Measures along the trajectories of i images, of n steps each."""

    values: Float[Tensor, "i n m"]  # the `MEASURES`
    since: Int[Tensor, "i n"]  # steps since the last full one, 0 at a full one, -1 at steps that were not made
    rows: Int[Tensor, "i n"]  # masked rows, which the values are means of


class Walk:
    """Observer of true trajectories: every one of `points` predicts each step from what is true before it.

    The points share base, sampling and N. An accelerator that ranks ahead needs the `order`.
    """

    def __init__(self, points: Sequence[Sampler], order: Tokens | None = None):
        self.points, self.order = points, order
        self.runs: list[Run] = []
        self.since: list[Int[Tensor, " b"]] = []
        self.found: list[list[Measured]] = [[] for _ in points]

    def on_step(self, record: StepRecord) -> None:
        base, b = self.points[0].base, len(record.tokens)
        if not self.runs:
            self._start(record)
        before = record.tokens_before(base.spec.vocab_size)
        predicted = [self._predict(run, record, before) for run in self.runs]
        measured = compare(self.points[0], record, predicted, self.masked)
        rows = torch.full((b,), self.masked.shape[1])
        for run, since, found, values in zip(self.runs, self.since, self.found, measured, strict=True):
            since.add_(1).masked_fill_(torch.tensor(run.full_images(record.index)), 0)
            found.append(Measured(values.cpu(), since.clone(), rows))
        self.new = record.new_positions
        self.masked = without(self.masked, self.new, base.spec.num_tokens)

    def measured(self) -> list[Measured]:
        """Return what was measured at each point."""
        left = self.points[0].num_steps - len(self.found[0])  # ties can end a trajectory early
        joined = [[torch.stack(column, 1) for column in zip(*found, strict=True)] for found in self.found]
        return [
            Measured(pad(values, (0, 0, 0, left)), pad(since, (0, left), value=-1), pad(rows, (0, left)))
            for values, since, rows in joined
        ]

    def _start(self, record: StepRecord) -> None:
        spec, tokens = self.points[0].base.spec, record.tokens
        self.masked = torch.arange(spec.num_tokens, device=tokens.device).expand(len(tokens), -1)
        self.new = self.masked[:, :0]
        counts = self.points[0].sampling.schedule.counts(spec.num_tokens, record.num_steps)
        for point in self.points:
            run = point.accelerator.start(point.base, record.branches, counts, point.fast)
            known = isinstance(run.order, RankedSets) and self.order is not None
            if run.order is not None and not known:
                name, order = point.accelerator.name, type(run.order).__name__
                raise UserError(
                    f"analysis=fidelity follows the order of true trajectories, but accelerator={name} decides by "
                    f"{order} what is revealed; leave the point out"
                )
            self.runs.append(run)
            self.since.append(torch.zeros(len(tokens), dtype=torch.long))

    def _predict(self, run: Run, record: StepRecord, before: Tokens) -> Features:
        if run.receive(record.index, record.features):
            return record.features
        features = run.features(record.index, before, self.new, record.moment)
        if run.order is not None and self.order is not None:  # ranked as the trajectory reveals
            steps = self.order.gather(1, self.masked)
            chosen = (steps == record.index).nonzero()[:, 1].view(len(steps), -1)
            run.order.scored(record.index, -steps.float(), self.masked, chosen)
        return features


def compare(
    sampler: Sampler, record: StepRecord, predicted: Sequence[Features], masked: Positions
) -> list[Float[Tensor, "b m"]]:
    """Return the `MEASURES` of each prediction over the masked positions (b, k) of every image.

    The logits of few positions at a time are in memory, since vocabularies are large.
    """
    b, k = masked.shape
    parts: list[list[Sums]] = [[] for _ in predicted]
    for positions in masked.split(max(1, MOST_LOGITS // (b * sampler.base.spec.vocab_size)), 1):
        true = log_probabilities(sampler, record, record.features, positions)
        for known, features in zip(parts, predicted, strict=True):
            known.append(divergence(true, log_probabilities(sampler, record, features, positions)))
    measured = []
    for features, known in zip(predicted, parts, strict=True):
        sums = Sums(*(torch.stack(column).sum(0) for column in zip(*known, strict=True)))
        error = relative_error(record.branches, record.features, features, masked)
        measured.append(torch.cat([error[:, None], means(sums, k)], 1))
    return measured


def log_probabilities(
    sampler: Sampler, record: StepRecord, features: Features, positions: Positions
) -> Float[Tensor, "b k v"]:
    """Return the logarithms of the distributions that guided logits give at a record's step, in at least float32."""
    guidance, n = sampler.sampling.guidance, record.num_steps
    logits = guided_logits(sampler.base, record.branches, features, positions, guidance, record.index, n)
    return agreement.log_probabilities(logits)


def relative_error(
    branches: Sequence[Branch], true: Features, predicted: Features, masked: Positions
) -> Float[Tensor, " b"]:
    """Return the squared distance of each image's features at masked rows over their squared length, of all halves."""
    distance, length = torch.zeros(2, len(masked), dtype=torch.float64, device=masked.device)
    for branch, a, b in zip(branches, true, predicted, strict=True):
        rows = image_rows(a, branch, masked).double()
        difference = image_rows(b, branch, masked).double() - rows
        for total, part in ((distance, difference), (length, rows)):
            total += part.square().sum((1, 2)).unflatten(0, (branch.copies, -1)).sum(0)
    return distance / length


def opened(folder: str | Path, num_images: int, points: Sequence[Sampler]) -> Store:
    """Return the store of trajectories that vanilla samplers like `points` made; UserError for any other."""
    key = f"analyses.fidelity.store={folder}"
    if not (Path(folder) / MANIFEST).is_file():
        raise UserError(f"{key}: no {MANIFEST} here; fill it with migm.collect, or leave the key out to sample anew")
    store = Store(folder)
    stored = {**store.header}
    if isinstance(stored.get("sampling"), dict):  # as earlier versions wrote it
        stored["sampling"] = sampling_identity(stored["sampling"])
    for point in points:
        halves = 1 if point.sampling.guidance is None else 2
        facts = {"base": point.base.fingerprint(), "sampling": point.sampling.identity}
        for name, value in {**facts, "copies": halves, "num_steps": point.num_steps}.items():
            if stored.get(name) != value:
                raise UserError(f"{key} holds trajectories of {name}={stored.get(name)}, but {point.label} has {value}")
    if len(store) < num_images:
        raise UserError(f"{key} holds {len(store)} trajectories, fewer than analyses.fidelity.num_images={num_images}")
    store.verify(contents=False)
    return store


def batches(store: Store, num_images: int, size: int) -> Iterator[dict[str, Tensor]]:
    """Yield the first images of a store in batches of one shard each."""
    left = num_images
    for number, shard in enumerate(store.shards):
        tensors = store.open(number) if left else {}
        for first in range(0, min(shard["count"], left), size):
            last = min(first + size, shard["count"], first + left)
            yield {name: tensor[first:last] for name, tensor in tensors.items()}
            left -= last - first
