"""Captured runs in Halton's order that begins at one place (elsewhere: `test_capture_of_bases.py`)."""

from dataclasses import replace

import torch
from test_capture import drawn, graphs  # noqa: F401  a fixture
from tiny_parts import halton_base
from waits import waits

from migm.runtime.compiling import Runtime
from migm.sampling.draw import Annealed
from migm.sampling.guidance import Constant
from migm.sampling.loop import Sampling
from migm.sampling.order import Halton
from migm.sampling.sampler import Sampler
from migm.sampling.schedule import Totals
from migm.sampling.select import Random


def test_a_replay_draws_what_a_plain_run_draws_and_waits_for_nothing(graphs):  # noqa: F811
    draw = Annealed(last=1.2, warm_up=1, top_k=20)
    sampling = Sampling(6, 2, Totals(), draw, Random(), Constant(1.0), Halton())
    fast = Sampler(halton_base(), sampling, runtime=Runtime(False, True))
    plain = replace(fast, runtime=Runtime(False, False))
    for labels, seed in (([3, 7], 0), ([1, 2], 5), ([3, 7], 0)):
        assert torch.equal(drawn(fast, labels, seed), drawn(plain, labels, seed))
    (graph,) = graphs
    assert graph.replays == 3
    assert not [func for func, *call in graph.calls if waits(func, *call)]
