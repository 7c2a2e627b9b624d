"""Rungs how many candidates each rung measures, and how many images verification gets, within a time."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from migm.runtime.errors import UserError

RESERVE = 0.06  # share of the time for what no plan foresees
VERIFIED = 0.4  # most of the time that verification may take
LEAST = 2  # candidates of a lane below which a rung is left out


@dataclass(frozen=True)
class Rates:
    """Seconds of an image by vanilla sampling, of an image beside its steps, and of every candidate."""

    vanilla: float
    extra: float
    candidate: float

    def image(self, share: float) -> float:
        """Seconds of an image that takes `share` of vanilla's time."""
        return share * self.vanilla + self.extra


@dataclass(frozen=True)
class Demand:
    """The work of a search if time allows: lanes by their share of vanilla's time, rungs, and verification."""

    shares: list[float]  # of each lane
    rungs: list[int]  # images
    keep: int
    finalists: int
    verify_images: int
    verify_sets: int
    rounds: int  # of timing all verified samplers side by side, each with a batch of
    batch: int  # images


@dataclass(frozen=True)
class Rungs:
    """Candidates of each lane in every rung, and images of each verified sampler and seed set."""

    candidates: list[int]
    verify_images: int
    search_seconds: float
    verify_seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def planned(wanted: Demand, rates: Rates, seconds: float, spent: float = 0.0) -> Rungs:
    """Return the largest plan that fits into `seconds`, of which `spent` are gone.

    Verification gets at most VERIFIED of the time that is left; then the first rung gets as many candidates as the rest
    allows.
    Raises UserError with the minutes that the smallest plan needs.
    """
    left = (seconds - spent) * (1 - RESERVE)
    fixed, an_image = verification(wanted, rates)
    images = min(wanted.verify_images, max(wanted.rungs[0], int((VERIFIED * left - fixed) / an_image)))
    verify = fixed + images * an_image
    for number in range(len(wanted.rungs), 0, -1):
        rungs = wanted.rungs[:number]
        counts = largest(wanted, rungs, rates, left - verify)
        if counts and counts[0] >= min(LEAST * wanted.keep, LEAST ** len(rungs)):
            return Rungs(counts, images, search_seconds(wanted, rungs, counts, rates), verify)
    least = fixed + min(images, wanted.rungs[0]) * an_image
    least += search_seconds(wanted, wanted.rungs[:1], [LEAST], rates)
    minutes = math.ceil(10 * (spent + least / (1 - RESERVE)) / 60) / 10
    raise UserError(
        f"budget={seconds / 60:g} minutes is too short: loading and measuring times took {spent:.0f} s, and {LEAST} "
        f"candidates of {wanted.rungs[0]} images for each of {len(wanted.shares)} lanes with their verification need "
        f"budget={minutes:g}; raise it, or lower shares, rungs, finalists, verify_seed_sets or evalset.batch_size"
    )


def verification(wanted: Demand, rates: Rates) -> tuple[float, float]:
    """Return the seconds of verification without images, and those that each image of a seed set adds.

    Vanilla is verified beside the finalists; times of all are measured side by side.
    """
    shares = [1.0, *(share for share in wanted.shares for _ in range(wanted.finalists))]
    times = wanted.rounds * wanted.batch * sum(share * rates.vanilla for share in shares)
    fixed = times + wanted.verify_sets * len(shares) * rates.candidate
    return fixed, wanted.verify_sets * sum(map(rates.image, shares))


def counts_of(first: int, rungs: int, keep: int) -> list[int]:
    """Return the candidates of each rung if one in `keep` goes on, at least one."""
    counts = [first]
    while len(counts) < rungs:
        counts.append(math.ceil(counts[-1] / keep))
    return counts


def search_seconds(wanted: Demand, rungs: Sequence[int], counts: Sequence[int], rates: Rates) -> float:
    """Return the seconds of a search with so many candidates in every lane; each rung makes images anew."""
    return sum(
        count * (images * rates.image(share) + rates.candidate)
        for share in wanted.shares
        for images, count in zip(rungs, counts, strict=True)
    )


def largest(wanted: Demand, rungs: Sequence[int], rates: Rates, seconds: float) -> list[int]:
    """Return the most candidates whose search ends within `seconds`; empty if not even one does."""
    first = 0
    for step in (64, 8, 1):
        while search_seconds(wanted, rungs, counts_of(first + step, len(rungs), wanted.keep), rates) <= seconds:
            first += step
    return counts_of(first, len(rungs), wanted.keep) if first else []


class Stopwatch:
    """The time that a tuning has spent in all its starts, of the seconds it has."""

    def __init__(self, seconds: float, before: float = 0.0, started: float | None = None):
        self.seconds, self.start = seconds, (time.monotonic() if started is None else started) - before

    @property
    def spent(self) -> float:
        return time.monotonic() - self.start

    @property
    def left(self) -> float:
        return self.seconds - self.spent
