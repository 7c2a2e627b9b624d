"""A tensor left on the CPU, one in every part that runs on a device: the check of that path sees each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import device_checks as checks
import pytest
import torch
from device_checks import Place
from pretend_cuda import pretended

import migm.benchmarks.steps
from migm.accelerators import runners
from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors import ml_cache, reuse, shortcut
from migm.accelerators.refresh import Uniform
from migm.metrics.frechet import MomentsMetric
from migm.sampling import loop, noise
from migm.shortcuts.maskgit import MaskGITShortcut
from migm.training import objective, optimizer, rollout
from migm.trajectories import record, replay

Make = Callable[[Any], Any]  # of what is there, what takes its place


def left(*names: str) -> Make:
    """A method after which these attributes are on the CPU."""

    def make(original: Any) -> Any:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            out = original(self, *args, **kwargs)
            for name in names:
                setattr(self, name, getattr(self, name).cpu())
            return out

        return method

    return make


def given(index: int) -> Make:
    """A function one of whose arguments is on the CPU."""

    def make(original: Any) -> Any:
        def function(*args: Any, **kwargs: Any) -> Any:
            return original(*(x.cpu() if i == index else x for i, x in enumerate(args)), **kwargs)

        return function

    return make


def gives(index: int | None = None) -> Make:
    """A function that gives its tensor, or one of them, on the CPU."""

    def make(original: Any) -> Any:
        def function(*args: Any, **kwargs: Any) -> Any:
            out = original(*args, **kwargs)
            return out.cpu() if index is None else tuple(x.cpu() if i == index else x for i, x in enumerate(out))

        return function

    return make


def uncalibrated(_: Any) -> Any:
    """The division as it was, of the CPU's weight by a number of CUDA."""

    @torch.no_grad()
    def calibrate(self: Any, embeddings: Any) -> None:
        self.new_token_proj_in.weight /= embeddings.float().std()

    return calibrate


def unmoved(original: Any) -> Any:
    def update(self: Any, step: int, features: Any) -> None:
        self.ready = True
        original(self, step, features)

    return update


def by_shortcut(place: Place) -> Any:
    return checks.drawn(place, Accelerator(Uniform(2), shortcut.Shortcut(module=place.shortcut()), "shortcut"))


def by_reuse(place: Place) -> Any:
    return checks.drawn(place, Accelerator(Uniform(2), reuse.Reuse(), "reuse"))


def by_ml_cache(place: Place) -> Any:
    return checks.drawn(place, Accelerator(Uniform(2), ml_cache.Subset(0.6), "ml_cache"))


def by_rollout(place: Place) -> Any:
    return checks.trained(place, "rollout")


def by_muon(place: Place) -> Any:
    return checks.trained(place, "mse", "muon")


class Moments(MomentsMetric):
    """Sums of features, as every Frechet distance adds them."""

    def update(self, features: Any) -> None:
        self.add(features)

    def compute(self) -> Any:
        return self.total


def counted(_: Place) -> Any:
    metric = Moments()
    metric.add_moments(4)
    metric.to("cuda:0")
    metric.update(torch.ones(3, 4, device="cuda:0"))


class Fault(NamedTuple):
    """What is on the CPU, where, and the check that sees it."""

    what: str
    owner: Any
    name: str
    make: Make
    check: Callable[[Place], Any]
    kind: str = "maskgit"


FAULTS = [
    Fault("predictors/shortcut: its network", shortcut._Advance, "update", unmoved, by_shortcut),
    Fault("predictors/reuse: the features", reuse._Held, "update", left("features"), by_reuse),
    Fault(
        "predictors/ml_cache: the rows' counts",
        ml_cache._Partial,
        "_choose_among",
        left("limits"),
        by_ml_cache,
        "dimoo",
    ),
    Fault("accelerators/runners: what is written", runners, "put", given(2), by_ml_cache),
    Fault("training/objective: the judged rows", objective, "masked_mse", given(2), checks.trained),
    Fault("training/rollout: the new tokens", rollout, "padded_positions", given(0), by_rollout),
    Fault("training/optimizer: the update", optimizer, "orthogonal", gives(), by_muon),
    Fault("shortcuts/maskgit: calibrate", MaskGITShortcut, "calibrate", uncalibrated, checks.trained),
    Fault("trajectories/record: the order", record.Recorder, "on_step", left("order"), checks.stored),
    Fault("trajectories/replay: the mask", replay, "replay", given(3), lambda place: checks.stored(place, "tokens")),
    Fault("sampling/noise: the keys", noise.KeyedNoise, "__init__", left("keys"), by_reuse),
    Fault("sampling/loop: tokens to paint into", loop, "initial_state", gives(0), checks.painted),
    Fault("metrics: features", MomentsMetric, "add", given(1), counted),
    Fault("bench: tokens", migm.benchmarks.steps.torch, "randint", gives(), checks.benched),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_tensor_left_on_the_cpu_is_seen(make_place, monkeypatch, fault):
    with pretended():
        place = make_place(fault.kind, "cuda")
        place.known.clear()
        monkeypatch.setattr(fault.owner, fault.name, fault.make(getattr(fault.owner, fault.name)))
        with pytest.raises(RuntimeError, match=r"(two|different) devices"):
            fault.check(place)
        place.known.clear()
