"""Every method on bases of aMUSEd's kind, whose end needs all rows (docs/originals/methods.md, Laws)."""

import functools

import method_checks as checks
import pytest
import torch
from amused_parts import random_amused
from families import METHODS, PROMPTS, B, Family, N, shared_rows_are_computed_once
from test_methods import LEARNED, OFF, VARIANTS

from migm.sampling.draw import GumbelMax
from migm.sampling.guidance import Constant
from migm.sampling.loop import Sampling
from migm.sampling.schedule import CosineFloor
from migm.sampling.select import Confidence
from migm.shortcuts.dimoo import DiMOOShortcut

CACHES = ("ml_cache", "recap", "dllm_cache", "taylorseer_module")
# diffusers' RMS norm takes the mean of squares in float32, in an order that depends on the layout of a batch.
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def tolerance(monkeypatch):
    monkeypatch.setattr(checks, "ROUNDING", TOLERANCE)
    monkeypatch.setattr(checks.close, "__defaults__", (TOLERANCE,))


def shortcut(cross):
    torch.manual_seed(1)
    network = DiMOOShortcut(32, num_heads=4, mlp_channels=32, rope_theta=1e4, cross_attention=cross)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.2)  # what it adds is zero before training
    return network


@pytest.fixture(
    scope="module", params=[pytest.param(False, marks=pytest.mark.slow, id="one"), pytest.param(True, id="four")]
)
def amused(request, tmp_path_factory):
    """A base with one token a row of its layers, or with four."""
    schedule, select = CosineFloor(at_least_one=True), Confidence(2.0)
    sampling = Sampling(N, B, schedule, GumbelMax(), select, Constant(3.0, "logits"))
    folder = tmp_path_factory.mktemp("amused")
    family = Family("amused", random_amused(request.param), PROMPTS, sampling, folder)
    with torch.random.fork_rng(devices=[]):
        family.learn(shortcut)
    return family


@pytest.fixture(scope="module")
def made(amused):
    """The accelerator of a method as it is configured, one for all tests of this file."""
    return functools.cache(amused.accelerator)


def marked(method, *more):
    """A parameter that belongs to the short suite if its method works on the layers."""
    return pytest.param(method, *more, marks=() if method in CACHES else pytest.mark.slow)


every_method = pytest.mark.parametrize("method", [marked(method) for method in METHODS])


@pytest.mark.parametrize(("method", "changes"), [marked(m, OFF[m][0]) for m in METHODS])
def test_with_nothing_left_out_it_is_vanilla_at_every_step(amused, method, changes):
    checks.is_vanilla(amused, amused.accelerator(method, **changes))


@every_method
def test_features_are_those_of_the_method_written_once_more(amused, made, method):
    checks.is_its_replay(amused, made(method), [1])


@pytest.mark.slow
@pytest.mark.parametrize(("method", "changes"), [(m, c) for m in CACHES for c in VARIANTS[m]])
def test_caches_with_other_settings_are_those_written_once_more(amused, method, changes):
    checks.is_its_replay(amused, amused.accelerator(method, **changes), [1])


@pytest.mark.slow
@every_method
def test_the_laws_of_a_generation_hold(amused, made, method):
    checks.full_steps_are_the_bases(amused, made(method))
    checks.tokens_follow_the_schedule(amused, made(method))
    checks.noise_is_left_alone(amused, made(method))


@pytest.mark.slow
@every_method
def test_a_batch_equals_one_by_one_and_nothing_is_kept_or_patched(amused, made, method):
    checks.batch_is_one_by_one(amused, made(method))
    checks.no_state_is_kept(amused, made(method))
    checks.nothing_is_patched(amused, made(method))


@pytest.mark.parametrize("method", [marked(m) for m in METHODS if m not in ("vanilla", *LEARNED)])
def test_unchanged_tokens_keep_their_features(amused, method):
    checks.unchanged_tokens_keep_their_features(amused, amused.accelerator(method))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"num_full_steps": 1}])
def test_local_steps_reveal_what_their_full_step_ranked(amused, changes):
    checks.targets_are_ranked(amused, amused.accelerator("recap", **changes))


def test_recap_computes_a_row_once_however_many_of_its_positions_are_next(amused):
    shared_rows_are_computed_once(amused, amused.accelerator("recap", num_full_steps=1))
