"""Every method on a base of Halton-MaskGIT's kind, in its own order (docs/originals/methods.md, Laws)."""

import functools

import method_checks as checks
import pytest
import torch
from families import LABELS, METHODS, B, Family, N
from test_methods import LEARNED, OFF
from tiny_parts import halton_base

from migm.runtime.errors import UserError
from migm.sampling.draw import Annealed
from migm.sampling.guidance import Constant
from migm.sampling.loop import Sampling
from migm.sampling.order import AllMasked, Halton
from migm.sampling.schedule import Totals
from migm.sampling.select import Random

IN_ORDER = [method for method in METHODS if method != "recap"]  # which ranks the positions itself


def made_family(folder, order, make_shortcut):
    sampling = Sampling(N, B, Totals(), Annealed(warm_up=1), Random(), Constant(1.0), order)
    family = Family("halton", halton_base(), LABELS, sampling, folder)
    family.learn(lambda cross: make_shortcut(channels=46, num_heads=1, cross_attention=cross))
    return family


@pytest.fixture(scope="module")
def halton(make_shortcut, tmp_path_factory):
    return made_family(tmp_path_factory.mktemp("halton"), Halton(roll=True), make_shortcut)


@pytest.fixture(scope="module")
def unordered(make_shortcut, tmp_path_factory):
    return made_family(tmp_path_factory.mktemp("halton"), AllMasked(), make_shortcut)


@pytest.fixture(scope="module")
def made(halton):
    """The accelerator of a method as it is configured, one for all tests of this file."""
    return functools.cache(halton.accelerator)


every_method = pytest.mark.parametrize("method", IN_ORDER)


@pytest.mark.parametrize(("method", "changes"), [(m, OFF[m][0]) for m in METHODS])
def test_with_nothing_left_out_it_is_vanilla_at_every_step(halton, method, changes):
    checks.is_vanilla(halton, halton.accelerator(method, **changes))


@every_method
def test_features_are_those_of_the_method_written_once_more(halton, made, method):
    checks.is_its_replay(halton, made(method), [1])


@every_method
def test_the_laws_of_a_generation_hold(halton, made, method):
    checks.full_steps_are_the_bases(halton, made(method))
    checks.tokens_follow_the_schedule(halton, made(method))
    checks.batch_is_one_by_one(halton, made(method))


@pytest.mark.slow
@every_method
def test_nothing_is_kept_or_patched(halton, made, method):
    checks.no_state_is_kept(halton, made(method))
    checks.nothing_is_patched(halton, made(method))


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("vanilla", *LEARNED)])
def test_unchanged_tokens_keep_their_features(unordered, method):
    checks.unchanged_tokens_keep_their_features(unordered, unordered.accelerator(method))


@pytest.mark.parametrize("changes", [{}, {"num_full_steps": 1}, {"predictor.recompute_condition": True}])
def test_recap_ranks_positions_where_no_order_does(unordered, changes):
    recap = unordered.accelerator("recap", **changes)
    checks.is_its_replay(unordered, recap)
    checks.targets_are_ranked(unordered, recap)


@pytest.mark.parametrize(
    ("method", "changes"),
    [("recap", {}), ("ml_cache_w0", {"predictor.force_new": True}), ("dllm_cache", {"predictor.transfer_ratio": 0.3})],
)
def test_new_tokens_are_exact_in_a_single_layer(unordered, method, changes):
    checks.new_tokens_are_exact(unordered, unordered.accelerator(method, **changes))


def test_recap_in_its_order_is_refused(halton):
    with pytest.raises(UserError, match=r"sampling\.order=Halton: accelerator=recap ranks the positions itself"):
        halton.run(halton.accelerator("recap"))


def test_an_accelerator_gets_what_the_class_says_without_computing_it_again(halton, monkeypatch):
    asked = []
    known = halton.base.transformer.modulation
    monkeypatch.setattr(halton.base.transformer, "modulation", lambda labels: asked.append(labels) or known(labels))
    for method in ("vanilla", "ml_cache", "shortcut_adaptive"):
        halton.run(halton.accelerator(method))
    assert [len(labels) for labels in asked] == [2 * len(LABELS)] * 3
    assert torch.equal(asked[0], torch.tensor([*LABELS, 10, 10, 10]))
