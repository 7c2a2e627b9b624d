"""Captured runs, by graphs that record and repeat the operators of torch on the CPU."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from waits import made_of_others, waits

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.extrapolation import Taylor
from migm.accelerators.predictors.forecast import Forecast
from migm.accelerators.predictors.reuse import Reuse
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Always, Uniform
from migm.runtime.compiling import Runtime
from migm.runtime.errors import UserError
from migm.sampling import capture
from migm.sampling.sampler import Sampler
from migm.shortcuts.forecast import ForecastShortcut


class Graph(TorchDispatchMode):
    """Keeps the operators that run in it; a replay repeats them on the same tensors."""

    made: ClassVar[list["Graph"]] = []

    def __init__(self):
        super().__init__()
        self.calls, self.replays = [], 0
        Graph.made.append(self)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if made_of_others(func):
            with self:
                return func.decompose(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        self.replays += 1
        for func, args, kwargs, out in self.calls:
            outs, again = (x if isinstance(x, (tuple, list)) else (x,) for x in (out, func(*args, **kwargs)))
            for kept, new in zip(outs, again, strict=True):
                if isinstance(kept, torch.Tensor) and kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)


@pytest.fixture
def graphs(monkeypatch):
    @contextmanager
    def recording(graph):
        with graph:
            yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    fake = {"Stream": lambda: stream, "current_stream": lambda: stream, "stream": lambda s: nullcontext()}
    for name, value in {**fake, "CUDAGraph": Graph, "graph": recording}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(Runtime, "captures", lambda self, device, size: bool(self.cuda_graphs))
    monkeypatch.setattr(Graph, "made", [])
    return Graph.made


def forecasting():
    """A network that starts from the last two full steps."""
    torch.manual_seed(1)
    net = ForecastShortcut(48, num_heads=4).double().eval().requires_grad_(False)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # some begin at zero
    return net


METHODS = {
    "vanilla": lambda net: Accelerator(Always()),
    "shortcut": lambda net: Accelerator(Uniform(2), Shortcut(module=net), "shortcut"),
    "forecast": lambda net: Accelerator(Uniform(2), Shortcut(module=forecasting()), "forecast"),
    "reuse": lambda net: Accelerator(Uniform(2), Reuse(), "reuse"),
    "residual": lambda net: Accelerator(Uniform(2), Reuse("residual"), "residual"),
    "taylorseer": lambda net: Accelerator(Uniform(2), Forecast(Taylor(1), "module"), "taylorseer"),
}


@pytest.fixture
def make(tiny_base, make_sampling, make_shortcut, graphs):
    def made(method, runtime):
        return Sampler(tiny_base, make_sampling(), METHODS[method](make_shortcut()), runtime=runtime)

    return made


def drawn(sampler, labels, seed):
    return sampler.tokens(torch.tensor(labels), sampler.noise(seed, torch.arange(len(labels)) + seed))


@pytest.mark.parametrize("method", METHODS)
def test_a_replay_draws_what_a_plain_run_draws_and_waits_for_nothing(make, graphs, method):
    fast = make(method, Runtime(False, True))
    plain = replace(fast, runtime=Runtime(False, False))
    for labels, seed in (([3, 7], 0), ([1, 2], 5), ([3, 7], 0)):
        assert torch.equal(drawn(fast, labels, seed), drawn(plain, labels, seed))
    (graph,) = graphs
    assert graph.replays == 3
    assert not [func for func, *call in graph.calls if waits(func, *call)]


def test_what_a_replay_returned_stays(make):
    fast = make("vanilla", Runtime(False, True))
    first = drawn(fast, [3, 7], 0)
    kept = first.clone()
    assert not torch.equal(drawn(fast, [1, 2], 5), first)
    assert torch.equal(first, kept)


def test_auto_captures_a_batch_size_when_it_comes_again(make, graphs):
    fast = make("vanilla", Runtime(False, "auto"))
    drawn(fast, [3, 7], 0)
    drawn(fast, [3], 0)
    assert graphs == []
    drawn(fast, [1, 2], 1)
    assert [graph.replays for graph in graphs] == [1]


def test_the_least_recently_used_run_is_dropped(make, graphs, monkeypatch):
    monkeypatch.setattr(capture, "MOST_RUNS", 2)
    fast = make("vanilla", Runtime(False, True))
    for size in (1, 2, 1, 3, 1, 2):
        drawn(fast, [3] * size, 0)
    assert [graph.replays for graph in graphs] == [3, 1, 1, 1]


def test_an_observer_sees_every_step_though_runs_are_captured(make, graphs):
    fast, seen = make("vanilla", Runtime(False, True)), []
    watch = SimpleNamespace(on_step=lambda record: seen.append(record.index))
    fast.tokens(torch.tensor([3]), fast.noise(0, torch.arange(1)), [watch])
    assert (seen, graphs) == (list(range(fast.num_steps)), [])


def test_a_run_that_waits_for_its_own_results_is_not_captured(make, make_shortcut, make_sampling):
    fast = make("shortcut", Runtime(False, True))
    some = make_sampling(select=replace(fast.sampling.select, rule="cutoff"))
    assert not replace(fast, sampling=some, runtime=Runtime(False, "auto")).replays
    with pytest.raises(UserError, match=r"runtime\.cuda_graphs=true, but .*choose auto"):
        replace(fast, sampling=some)
