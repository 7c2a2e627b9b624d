"""The most memory that a call holds at once, beyond what was held before it, such as weights."""

import os
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch.autograd.profiler import profile

COUNTERS = {"cuda": "torch.cuda.max_memory_allocated", "cpu": "allocations in torch.profiler"}


def peak_bytes(job: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors and of torch's own scratch space; what libraries allocate past torch does not count.

    How they are counted on a device is named in COUNTERS.
    """
    if device.type == "cuda":
        job()  # workspaces that stay are made by the first call
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        job()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it complains where there is no GPU
    profiler = profile(use_cpu=True, profile_memory=True)
    with profiler:
        job()
    made: Any = profiler
    events = [event for event in made.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes, initial=0))
