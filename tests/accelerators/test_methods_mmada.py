"""The laws of methods on a base of MMaDA's kind, its padding left out or attended (docs/originals/methods.md, Laws)."""

import functools

import method_checks as checks
import pytest
import torch
from families import METHODS, PROMPTS, B, Family, N
from mmada_parts import task_base
from test_methods import LEARNED, OFF

from migm.sampling.draw import ExponentialRace
from migm.sampling.guidance import Constant
from migm.sampling.loop import Sampling
from migm.sampling.schedule import CosineFloor
from migm.sampling.select import Confidence
from migm.shortcuts.dimoo import DiMOOShortcut

QUICK = [("shortcut", False), ("recap", True)]
methods = pytest.mark.parametrize(
    ("method", "attend"),
    [
        (m, attend) if (m, attend) in QUICK else pytest.param(m, attend, marks=pytest.mark.slow)
        for m in METHODS
        for attend in (False, True)
    ],
)


def shortcut(cross):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = DiMOOShortcut(48, num_heads=4, mlp_channels=32, rope_theta=1e4, cross_attention=cross)
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.2)  # what it adds is zero before training
    return network


@functools.cache
def made(folder, attend, one_pass=False):
    draw, select = ExponentialRace(dtype="float64"), Confidence(1.0, "compounding")
    sampling = Sampling(N, B, CosineFloor(at_least_one=True), draw, select, Constant(2.0, "logits"))
    name = f"attended{attend}"
    made_of = Family(name, task_base(attend_padding=attend, one_pass=one_pass), PROMPTS, sampling, folder)
    if not one_pass:
        made_of.learn(shortcut)
    return made_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mmada")


@methods
def test_every_law_of_a_method_holds(folder, method, attend):
    family = made(folder, attend)
    for changes in OFF[method][:1]:
        checks.is_vanilla(family, family.accelerator(method, **changes))
    accelerator = family.accelerator(method)
    checks.is_its_replay(family, accelerator, [1])
    checks.full_steps_are_the_bases(family, accelerator)
    checks.tokens_follow_the_schedule(family, accelerator)
    checks.no_state_is_kept(family, accelerator)
    checks.batch_is_one_by_one(family, accelerator)
    checks.noise_is_left_alone(family, accelerator)
    checks.nothing_is_patched(family, accelerator)
    if method not in ("vanilla", *LEARNED):
        checks.unchanged_tokens_keep_their_features(family, accelerator)
    if not attend:
        checks.one_pass_is_two(family, accelerator, made(folder, attend, one_pass=True))


@pytest.mark.parametrize("attend", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_new_tokens_are_exact_in_a_single_layer_and_local_steps_reveal_what_was_ranked(folder, attend):
    family = made(folder, attend)
    checks.new_tokens_are_exact(family, family.accelerator("recap"))
    checks.targets_are_ranked(family, family.accelerator("recap"))
    checks.new_tokens_are_exact(family, family.accelerator("dllm_cache", **{"predictor.transfer_ratio": 0.3}))
