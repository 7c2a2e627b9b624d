"""Measure the peak memory of a call, beyond what was held before it, such as weights."""

import os
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch.autograd.profiler import profile

COUNTERS = {"cuda": "torch.cuda.max_memory_allocated", "cpu": "allocations in torch.profiler"}


def peak_bytes(job: Callable[[], object], device: torch.device, warm: bool = False) -> int:
    """Return bytes of tensors and of torch's own scratch space; other libraries' allocations do not count.

    COUNTERS names the counter of each device type. A `warm` job has been called before.
    """
    if device.type == "cuda":
        if not warm:
            job()  # the first call allocates workspaces that stay
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        job()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler's warning where there is no GPU
    profiler = profile(use_cpu=True, profile_memory=True)
    with profiler:
        job()
    recorded: Any = profiler
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes, initial=0))
