"""Search by successive halving: an optimiser suggests candidates for every lane, the best of each rung go on."""

import logging
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from migm.runtime.console import Plain
from migm.runtime.errors import UserError
from migm.runtime.extras import optional
from migm.runtime.progress import progress
from migm.tuning.journal import Journal
from migm.tuning.rungs import Rates, Rungs
from migm.tuning.space import Candidate, Space

ATTEMPTS = 30  # suggestions for a candidate until one fits its share
TRUST = 0.1  # of a plan's search, measured before its pace counts
STARTUP = 16  # random candidates before the optimiser learns from what was measured


class Goal(NamedTuple):
    """A share of vanilla's time to fill, by one method or, with None, by any."""

    share: float
    method: str | None


@dataclass
class Tried:
    """A candidate, and its value in each rung by other images."""

    number: int
    lane: Goal
    candidate: Candidate
    predicted: float  # share of vanilla's time
    values: list[tuple[int, float]] = field(default_factory=list)  # images, value

    @property
    def value(self) -> float:
        """The mean over all images so far, whose metric has no bias of few."""
        return sum(n * value for n, value in self.values) / self.images

    @property
    def images(self) -> int:
        return sum(n for n, _ in self.values)


Measure = Callable[[Candidate, int], float]  # a candidate's value on the images of a rung


class Search:
    """Fill every lane with the candidates that a plan allows, and keep the best of each; a second start goes on.

    Values are measured in the order of lanes and numbers, and only those that the journal lacks. Where the time is
    short, the rest of a rung is left out, so that later rungs and verification keep theirs.
    """

    def __init__(
        self,
        space: Space,
        lanes: Sequence[Goal],
        plan: Rungs,
        rates: Rates,
        measure: Measure,
        journal: Journal,
        config: Any,
        sign: int,
        console: Plain,
    ):
        self.space, self.lanes, self.plan, self.rates, self.measure = space, lanes, plan, rates, measure
        self.journal, self.config, self.sign, self.console = journal, config, sign, console
        self.tried: list[Tried] = []
        self.suggested: list[tuple[Tried, Any]] = []  # with Optuna's trial
        self.work = self.taken = 0.0  # predicted seconds of this start's measurements, and those they took
        self.mark = journal.clock.spent  # end of the last measurement

    def run(self, finalists: int) -> dict[Goal, list[Tried]]:
        """Return the best candidates of each lane, best first; a lane that nothing fits is left out."""
        counts, total = self.plan.candidates, self.plan.search_seconds
        with progress(self.console, "candidates", part="search") as bar:
            self.task, self.bar = bar.add_task("search", total=len(self.lanes) * sum(counts), share=0.0), bar
            self.done = 0.0
            self._first(counts[0], total)
            alive = {lane: self.ranked(lane) for lane in self.lanes}
            for rung in range(1, len(counts)):
                ahead = self._ahead(rung + 1)
                chosen = [
                    (place, tried)
                    for lane in self.lanes
                    for place, tried in enumerate(alive[lane][: min(counts[rung], self._going_on(len(alive[lane])))])
                ]
                for _, tried in sorted(chosen, key=lambda each: each[0]):
                    if not self._measured(tried, rung, ahead):
                        break
                reached = {lane: [t for t in alive[lane] if len(t.values) > rung] for lane in self.lanes}
                alive = {lane: sorted(reached[lane] or alive[lane], key=self.order) for lane in self.lanes}
            bar.update(self.task, completed=len(self.lanes) * sum(counts), share=1.0)
        return {lane: found[:finalists] for lane, found in alive.items() if found}

    def order(self, tried: Tried) -> tuple[float, int]:
        """The key by which the best come first."""
        return self.sign * tried.value, tried.number

    def ranked(self, lane: Goal) -> list[Tried]:
        """Return what was measured in a lane, best first."""
        return sorted((tried for tried in self.tried if tried.lane == lane), key=self.order)

    @property
    def pace(self) -> float:
        """Seconds that a predicted second takes; 1 until a part of the search was measured: one candidate may lag."""
        return self.taken / self.work if self.work > TRUST * self.plan.search_seconds else 1.0

    def _going_on(self, number: int) -> int:
        return -(-number // self.config.keep)

    def _ahead(self, rung: int) -> float:
        """Return the predicted seconds of the rungs from `rung` on and of verification."""
        later = zip(self.plan.candidates[rung:], self.config.rungs[rung:], strict=False)
        seconds = sum(count * self._seconds(lane.share, images) for count, images in later for lane in self.lanes)
        return seconds + self.plan.verify_seconds

    def _seconds(self, share: float, images: int) -> float:
        return images * self.rates.image(share) + self.rates.candidate

    def _first(self, count: int, total: float) -> None:
        """Ask for and measure the candidates of the first rung, lane by lane in turn."""
        ahead = self._ahead(1)
        for number in range(count * len(self.lanes)):
            lane = self.lanes[number % len(self.lanes)]
            suggestion = self._suggestion(number, lane)
            if suggestion is None:
                self._advance(lane.share, self.config.rungs[0])
                continue
            (candidate, predicted), trial = suggestion
            tried = Tried(number, lane, candidate, predicted)
            if not self._measured(tried, 0, ahead):
                break
            self.tried.append(tried)
            self.suggested.append((tried, trial))

    def _measured(self, tried: Tried, rung: int, ahead: float) -> bool:
        """Add the value of a rung, from the journal or measured; False if there is no time left for it."""
        images, about = self.config.rungs[rung], {"rung": rung, "number": tried.number}
        if self.journal.one("cut", **about):
            return False
        line = self.journal.one("trial", **about)
        if line is None:
            expected = self._seconds(tried.predicted, images)
            if self.journal.clock.left < self.pace * (expected + ahead):
                self.journal.add("cut", **about)
                self.console.print(f"rung {rung + 1} ends early: the time that is left is for what follows")
                return False
            self.bar.update(self.task, description=f"{tried.candidate.accelerator} at {tried.lane.share:.0%}")
            value = self.measure(tried.candidate, rung)
            self.work, self.taken = self.work + expected, self.taken + self.journal.clock.spent - self.mark
            point = {"candidate": tried.candidate.as_json(), "predicted": tried.predicted, "value": value}
            lane = {"share": tried.lane.share, "method": tried.lane.method}
            self.journal.add("trial", **about, **lane, images=images, seed_set=self.config.seed_sets[rung], **point)
        elif line["candidate"] != tried.candidate.as_json():
            raise UserError(
                f"{self.journal.path} has another candidate {tried.number} than this version of migm or Optuna "
                "suggests; choose another name="
            )
        else:
            value = line["value"]
        self.mark = self.journal.clock.spent
        tried.values.append((images, value))
        self._advance(tried.lane.share, images)
        return True

    def _advance(self, share: float, images: int) -> None:
        self.done += self._seconds(share, images)
        self.bar.update(self.task, advance=1, share=min(self.done / self.plan.search_seconds, 1.0))

    def _suggestion(self, number: int, lane: Goal) -> tuple[tuple[Candidate, float], Any] | None:
        """Return candidate `number` with its predicted share, and Optuna's trial; None if nothing fits the lane.

        It depends on the number and on the values so far alone, so that a second start suggests the same.
        """
        for attempt in range(ATTEMPTS):
            study = self._study(number * ATTEMPTS + attempt)
            study.enqueue_trial(self._fixed(number, lane) if not attempt else {"share": lane.share})
            trial = study.ask()
            if found := self.space.suggest(trial, lane.share, lane.method):
                return found, study.trials[-1]
        return None

    def _fixed(self, number: int, lane: Goal) -> dict[str, Any]:
        """Return what is not left to the optimiser: a lane begins with vanilla and each method, not tuned."""
        turn, fixed = number // len(self.lanes), {"share": lane.share}
        names = sorted(self.space.methods, key=lambda name: not self.space.methods[name].is_vanilla)
        begins = len(names) if self.plan.candidates[0] >= 2 * len(names) else 1
        if turn >= (1 if lane.method else begins):
            return fixed
        return {**fixed, **({} if lane.method else {"method": names[turn]}), **dict.fromkeys(self.space.factors, 1.0)}

    def _study(self, seed: int) -> Any:
        """Return a study of all candidates so far, valued by their place in their lane: 0 the best, 1 the worst.

        Lanes differ in what can be reached at all; places make them comparable, so that all teach the same optimiser.
        """
        optuna = quiet_optuna()
        seed = random.Random(f"{self.config.seed} {seed}").randrange(2**32)
        kinds = {
            "random": lambda: optuna.samplers.RandomSampler(seed=seed),
            "tpe": lambda: optuna.samplers.TPESampler(
                seed=seed, multivariate=True, group=True, n_startup_trials=STARTUP
            ),
        }
        study = optuna.create_study(direction="minimize", sampler=kinds[self.config.optimiser]())
        places = self._places()
        for tried, trial in self.suggested:
            made = optuna.trial.create_trial(
                params=trial.params, distributions=trial.distributions, value=places[tried.number]
            )
            study.add_trial(made)
        return study

    def _places(self) -> Mapping[int, float]:
        places = {}
        for lane in self.lanes:
            found = sorted((t for t, _ in self.suggested if t.lane == lane), key=lambda t: self.sign * t.values[0][1])
            places |= {tried.number: (place + 0.5) / len(found) for place, tried in enumerate(found)}
        return places


def quiet_optuna() -> Any:
    """Return Optuna, without its line for every study and its warnings of experimental settings."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # of its storages, which are not used
    optuna = optional("optuna", "migm.tune")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
