"""Profile a call: the operators that take the most time, how many kernels it launches, how often the host waits."""

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from migm.benchmarks.ledger import Row
from migm.benchmarks.timing import Job, warmed_up

TOP = 12  # operators that a row keeps
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch")  # how calls of CUDA that start kernels or graphs begin
WAIT = "aten::_local_scalar_dense"  # a number that the host reads: item(), int(), a condition


def profiled(job: Job, device: torch.device) -> Row:
    """Return milliseconds and launches of one warm call, its host waits, and its TOP operators.

    On a CPU a launch is an operator that calls no other, and only the numbers that the host reads count as waits.
    """
    warmed_up(job, device)
    on_cuda = device.type == "cuda"
    waits = cuda_waits(job.call) if on_cuda else 0
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler's warning where there is no GPU
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities) as profiler:
        job.call()
        if on_cuda:
            torch.cuda.synchronize(device)
    events: list[Any] = list(profiler.key_averages())
    operators = sorted(filter(None, (operator(event, on_cuda) for event in events)), key=lambda row: -row["ms"])
    if on_cuda:
        launches = sum(event.count for event in events if event.key.startswith(LAUNCHES))
    else:
        waits = sum(event.count for event in events if event.key == WAIT)
        launches = sum(not event.cpu_children for event in profiler.events() or ())
    busy = sum(row["ms"] for row in operators)
    return {"device_ms": busy, "launches": launches, "host_waits": waits, "operators": operators[:TOP]}


def operator(event: Any, on_cuda: bool) -> Row | None:
    """Return name, milliseconds and calls of an operator that ran on the device itself; None for others."""
    on_host = str(event.device_type).endswith("CPU")
    us = event.self_device_time_total if on_cuda else event.self_cpu_time_total
    if on_cuda == on_host or us <= 0:
        return None
    return {"name": event.key[:120], "ms": us / 1e3, "calls": event.count}


def cuda_waits(call: Callable[[], object]) -> int:
    """Return how often torch makes the host wait for the device in a call."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(warning.message).lower() for warning in caught)
