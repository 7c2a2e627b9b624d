"""The laws of methods where positions share a row, on a base of Meissonic's kind (docs/originals/methods.md, Laws)."""

import functools

import method_checks as checks
import pytest
import torch
from families import METHODS, PROMPTS, B, Family, N, shared_rows_are_computed_once
from meissonic_parts import APART, JOINED, Timeless, meissonic_base
from test_methods import LEARNED, OFF, VARIANTS

from migm.sampling.draw import InverseCDF
from migm.sampling.guidance import Constant
from migm.sampling.loop import Sampling
from migm.sampling.schedule import CosineFloor
from migm.sampling.select import Confidence
from migm.shortcuts.dimoo import DiMOOShortcut

QUICK = ("dllm_cache", "ml_cache", "recap", "shortcut", "taylorseer_module")


def quick_or_slow(methods):
    return [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in methods]


def shortcut(cross):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = DiMOOShortcut(32, num_heads=2, mlp_channels=32, rope_theta=1e4, cross_attention=cross)
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.2)  # what it adds is zero before training
    return network


@functools.cache
def family_of(folder, kind=None, config=JOINED):
    base = meissonic_base(transformer=config, **({"kind": kind} if kind else {}))
    sampling = Sampling(N, B, CosineFloor(at_least_one=True), InverseCDF(), Confidence(1.0), Constant(2.0, "logits"))
    made = Family("meissonic", base, PROMPTS, sampling, folder / str(kind) / str(config.cell))
    made.learn(shortcut)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("meissonic")


@pytest.mark.parametrize("method", quick_or_slow(METHODS))
def test_every_law_of_a_method_holds(folder, method):
    family = family_of(folder)
    for changes in OFF[method][:1] if method in QUICK else OFF[method]:
        checks.is_vanilla(family, family.accelerator(method, **changes))
    accelerator = family.accelerator(method)
    checks.is_its_replay(family, accelerator, [1])
    checks.full_steps_are_the_bases(family, accelerator)
    checks.tokens_follow_the_schedule(family, accelerator)
    checks.batch_is_one_by_one(family, accelerator)
    checks.noise_is_left_alone(family, accelerator)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_kept_or_patched(folder, method):
    family = family_of(folder)
    checks.no_state_is_kept(family, family.accelerator(method))
    checks.nothing_is_patched(family, family.accelerator(method))


@pytest.mark.parametrize("method", quick_or_slow(m for m in METHODS if m not in ("vanilla", *LEARNED)))
def test_unchanged_tokens_keep_their_features(folder, method):
    family = family_of(folder)
    checks.unchanged_tokens_keep_their_features(family, family.accelerator(method))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "changes"), [(m, c) for m in VARIANTS for c in VARIANTS[m]])
def test_features_with_other_settings_are_those_of_the_method_written_once_more(folder, method, changes):
    family = family_of(folder)
    checks.is_its_replay(family, family.accelerator(method, **changes), [1])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_laws_hold_where_every_position_has_its_row(folder, method):
    family = family_of(folder, config=APART)
    checks.is_vanilla(family, family.accelerator(method, **OFF[method][0]))
    checks.is_its_replay(family, family.accelerator(method), [1])


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("recap", {}),
        ("recap", {"num_full_steps": 1, "predictor.recompute_condition": True}),
        ("ml_cache_w0", {"predictor.force_new": True}),
        ("ml_cache_w0", {"predictor.force_new": True, "predictor.image_rows_only": True, "predictor.cache_ratio": 0.9}),
        ("dllm_cache", {"predictor.transfer_ratio": 0.9}),
    ],
)
def test_new_tokens_are_exact_in_a_single_layer_where_time_stands_still(folder, method, changes):
    """Otherwise the keys and values of all rows are those of the step that stored them."""
    family = family_of(folder, kind=Timeless)
    checks.new_tokens_are_exact(family, family.accelerator(method, **changes))


@pytest.mark.parametrize("changes", [{}, {"num_full_steps": 1}])
def test_local_steps_reveal_what_their_full_step_ranked(folder, changes):
    family = family_of(folder)
    checks.targets_are_ranked(family, family.accelerator("recap", **changes))


def test_recap_computes_a_row_once_however_many_of_its_positions_are_next(folder):
    family = family_of(folder)
    shared_rows_are_computed_once(family, family.accelerator("recap", num_full_steps=1))
