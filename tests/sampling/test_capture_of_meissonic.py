"""Captured runs of Meissonic, whose prompts are read before a run, and of Di[M]O, which begins with noise."""

from dataclasses import replace

import pytest
import torch
from meissonic_parts import meissonic_base
from test_capture import graphs  # noqa: F401  a fixture
from waits import waits

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.extrapolation import Taylor
from migm.accelerators.predictors.forecast import Forecast
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Uniform
from migm.bases.dimo import DiMOMeissonic
from migm.runtime.compiling import Runtime
from migm.sampling.draw import GumbelMax, Likeliest
from migm.sampling.guidance import Constant
from migm.sampling.loop import Sampling
from migm.sampling.sampler import VANILLA, Sampler
from migm.sampling.schedule import CosineFloor
from migm.sampling.select import Confidence, Random
from migm.shortcuts.dimoo import DiMOOShortcut

GUIDED = Sampling(6, 2, CosineFloor(at_least_one=True), GumbelMax(), Confidence(2.0), Constant(8.0, "logits"))
ONE_STEP = Sampling(1, 1, CosineFloor(), Likeliest(top_k=9, top_p=0.9), Random())


def shortcut():
    torch.manual_seed(0)
    network = DiMOOShortcut(32, num_heads=2, mlp_channels=32, rope_theta=1e4).double()
    return Accelerator(Uniform(2), Shortcut(module=network), "shortcut")


MADE = {
    "vanilla": lambda: Sampler(meissonic_base(), GUIDED, VANILLA),
    "shortcut": lambda: Sampler(meissonic_base(), GUIDED, shortcut()),
    "taylorseer": lambda: Sampler(
        meissonic_base(), GUIDED, Accelerator(Uniform(2), Forecast(Taylor(1), "module"), "taylorseer")
    ),
    "one step": lambda: Sampler(meissonic_base(kind=DiMOMeissonic), ONE_STEP),
}


@pytest.mark.parametrize("made", MADE)
def test_a_replay_draws_what_a_plain_run_draws_and_waits_for_nothing(graphs, made):  # noqa: F811
    sampler = MADE[made]()
    fast, plain = (replace(sampler, runtime=Runtime(False, captured)) for captured in (True, False))
    for prompts, seed in ((["a cat", "a dog"], 0), (["a red bird", "no"], 5), (["a cat", "a dog"], 0)):
        ours, theirs = (s.tokens(prompts, s.noise(seed, torch.arange(2) + seed)) for s in (fast, plain))
        assert torch.equal(ours, theirs)
    (graph,) = graphs
    assert graph.replays == 3
    assert not [func for func, *call in graph.calls if waits(func, *call)]
