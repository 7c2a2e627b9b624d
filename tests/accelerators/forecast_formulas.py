"""The forecasters' formulas as published, on values (docs/originals/methods.md, TaylorSeer, HiCache, FoCa)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Formula = Callable[[Sequence[int], Sequence[Any], int, int], Any]  # full steps, values there, step, order


def derivatives(times: Sequence[int], values: Sequence[Any], order: int) -> list[Any]:
    """TaylorSeer's D_0, D_1, ... at the last full step, brought up to date at one full step after the other."""
    known: list[Any] = []
    for i, value in enumerate(values):
        new = [value]
        for before in known[:order]:
            new.append((new[-1] - before) / (times[i] - times[i - 1]))
        known = new
    return known


def taylor(times: Sequence[int], values: Sequence[Any], step: int, order: int) -> Any:
    k = step - times[-1]
    return sum(d * (k**j / math.factorial(j)) for j, d in enumerate(derivatives(times, values, order)))


def hermite(times: Sequence[int], values: Sequence[Any], step: int, order: int, scale: float = 0.5) -> Any:
    first, *rest = derivatives(times, values, order)
    at = scale * (step - times[-1])
    for j, d in enumerate(rest, 1):
        first = first + d * float(scale**j * np.polynomial.Hermite.basis(j)(at) / math.factorial(j))
    return first


def newton(times: Sequence[int], values: Sequence[Any], step: int, order: int) -> Any:
    """The polynomial through the last order + 1 values, in Lagrange's form."""
    times, values = times[-order - 1 :], values[-order - 1 :]
    total: Any = 0
    for i, value in enumerate(values):
        others = [t for j, t in enumerate(times) if j != i]
        total = total + value * math.prod((step - t) / (times[i] - t) for t in others)
    return total


def foca(times: Sequence[int], values: Sequence[Any], step: int, order: int) -> Any:
    """Step by step: explicit BDF2 of variable step, then the mean with the slope of the full steps."""
    if len(values) == 1:
        return values[-1]
    path = {times[-2]: values[-2], times[-1]: values[-1]}
    full_slope = (values[-1] - values[-2]) / (times[-1] - times[-2])
    for now in range(times[-1], step):
        t = sorted(path)[-2]
        r = 1 / (now - t)
        slope = (path[now] - path[t]) / (now - t)
        ahead = ((1 + r) ** 2 * path[now] - r**2 * path[t] + (1 + r) * slope) / (1 + 2 * r)
        path[now + 1] = path[now] + 0.5 * full_slope + 0.5 * (ahead - path[now])
    return path[step]


def foca_published(times: Sequence[int], values: Sequence[Any], step: int, order: int) -> Any:
    """The same with r = 1 at any distance: (4 F - F' + 2 h S) / 3 predicts, for a step h = 1."""
    if len(values) == 1:
        return values[-1]
    before, now, gap = values[-2], values[-1], times[-1] - times[-2]
    full_slope = (now - before) / gap
    for _ in range(times[-1], step):
        ahead = (4 * now - before + 2 * (now - before) / gap) / 3
        before, now, gap = now, now + 0.5 * full_slope + 0.5 * (ahead - now), 1
    return now


FORMULAS: dict[str, Formula] = {
    "taylor": taylor,
    "newton": newton,
    "hermite": hermite,
    "foca": foca,
    "foca_published": foca_published,
}
