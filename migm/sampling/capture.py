"""Capture whole runs as CUDA graphs: with a small base, starting kernels takes longer than running them."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from migm.bases.base import Branch
from migm.runtime.shapes import Tokens
from migm.sampling.noise import KeyedNoise

MOST_RUNS = 8  # captured runs that a sampler keeps, each with memory of its own
WARM_UPS = 2  # runs before a capture: kernels are compiled and attention plans made

Run = Callable[[Sequence[Branch], KeyedNoise], Tokens]
Shape = tuple[Any, ...]


@dataclass
class Captured:
    """A captured run: its tokens follow from its inputs, which are overwritten before every replay."""

    graph: Any  # torch.cuda.CUDAGraph
    branches: list[Branch]
    noise: KeyedNoise
    tokens: Tokens

    def replay(self, branches: Sequence[Branch], noise: KeyedNoise) -> Tokens:
        for kept, new in zip(tensors_of(self.branches, self.noise), tensors_of(branches, noise), strict=True):
            kept.copy_(new)
        self.graph.replay()
        return self.tokens.clone()


class CapturedRuns:
    """The captured runs of one sampler, the least recently used dropped first."""

    def __init__(self) -> None:
        self.runs: OrderedDict[Shape, Captured] = OrderedDict()
        self.seen: set[Shape] = set()

    def tokens(self, run: Run, branches: Sequence[Branch], noise: KeyedNoise, at_once: bool) -> Tokens:
        """Return the tokens of a run, replayed if inputs of these shapes were captured.

        They are captured when they come for the second time, or `at_once`.
        """
        shape = shape_of(branches, noise)
        if shape not in self.runs:
            if shape not in self.seen and not at_once:
                self.seen.add(shape)
                return run(branches, noise)
            self.runs[shape] = capture(run, branches, noise)
            if len(self.runs) > MOST_RUNS:
                self.runs.popitem(last=False)
        self.runs.move_to_end(shape)
        return self.runs[shape].replay(branches, noise)


def capture(run: Run, branches: Sequence[Branch], noise: KeyedNoise) -> Captured:
    """Capture a run over copies of its inputs."""
    kept, kept_noise = [copied(branch) for branch in branches], noise.of(noise.keys.clone())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            run(kept, kept_noise)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = run(kept, kept_noise)
    return Captured(graph, kept, kept_noise, tokens)


def copied(branch: Branch) -> Branch:
    return replace(branch, **{name: x.clone() for name, x in vars(branch).items() if isinstance(x, Tensor)})


def tensors_of(branches: Sequence[Branch], noise: KeyedNoise) -> list[Tensor]:
    """Return all tensors that a run reads besides weights, in a fixed order."""
    return [x for branch in branches for x in vars(branch).values() if isinstance(x, Tensor)] + [noise.keys]


def shape_of(branches: Sequence[Branch], noise: KeyedNoise) -> Shape:
    """Return what must be equal for a replay: the shapes of all tensors, and all else that branches hold."""
    parts = [(name, tuple(x.shape) if isinstance(x, Tensor) else x) for b in branches for name, x in vars(b).items()]
    return (*parts, tuple(noise.keys.shape))
