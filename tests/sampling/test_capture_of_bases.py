"""Captured runs of every family of bases: what a plain run draws, waiting for nothing, however many steps there are."""

from dataclasses import replace

import pytest
import torch
from base_kinds import KINDS, STEPPED, drawn
from test_capture import Graph, graphs  # noqa: F401  a fixture
from torch.utils._python_dispatch import TorchDispatchMode
from waits import waits

from migm.runtime.compiling import Runtime
from migm.sampling import capture

QUICK = {
    "vanilla": ["halton", "dimoo", "amused_joined", "mmada"],
    "shortcut": ["amused_joined", "meissonic", "mmada"],
    "taylorseer_module": ["meissonic"],
}
CASES = [
    pytest.param(name, method, marks=() if name in QUICK[method] else pytest.mark.slow)
    for method in QUICK
    for name in STEPPED
]
ONE_STEP = [(name, "vanilla") for name in KINDS if name not in STEPPED]


@pytest.mark.parametrize(("name", "method"), [*CASES, *ONE_STEP])
def test_a_replay_draws_what_a_plain_run_draws_and_waits_for_nothing(graphs, name, method):  # noqa: F811
    plain = KINDS[name].sampler("float64", method=method)
    fast = replace(plain, runtime=Runtime(False, True))
    for images, seed in (([0, 1], 0), ([2, 0], 5), ([0, 1], 0)):
        inputs = KINDS[name].inputs(images)
        assert torch.equal(drawn(fast, inputs, seed), drawn(plain, inputs, seed))
    (graph,) = graphs
    assert graph.replays == 3
    assert not [func for func, *call in graph.calls if waits(func, *call)]


class Counted(TorchDispatchMode):
    """Counts the operators that the host starts."""

    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", KINDS)
def test_the_host_starts_as_little_for_a_long_run_as_for_a_short_one(graphs, monkeypatch, name):  # noqa: F811
    """A replay copies the inputs, starts the graph and copies the tokens."""
    sampler, found = KINDS[name].sampler("float64"), []
    monkeypatch.setattr(capture, "WARM_UPS", 0)  # which a pretended graph does not need
    monkeypatch.setattr(Graph, "replay", lambda graph: None)  # one launch, whose operators are not the host's
    for steps in (1, 1 if name not in STEPPED else 4):
        rules = replace(sampler.sampling, num_steps=steps, num_full_steps=steps)
        fast = replace(sampler, sampling=rules, runtime=Runtime(False, True))
        branches, noise = (
            fast.base.encode(KINDS[name].inputs([0]), rules.guidance is not None),
            fast.noise(0, torch.arange(1)),
        )
        run = lambda branches, noise: fast._start(branches, noise).finish()  # noqa: B023, E731  called at once
        fast.captured.tokens(run, branches, noise, at_once=True)
        with Counted() as counted:
            fast.captured.tokens(run, branches, noise, at_once=True)
        inputs = len(capture.tensors_of(branches, noise))
        found.append(counted.calls)
        assert 0 < counted.calls <= inputs + 1
    assert found[0] == found[1]
