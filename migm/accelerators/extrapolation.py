"""Forecasts from the values of the last full steps, as weights (docs/originals/methods.md, TaylorSeer, HiCache, FoCa).

Every rule here is linear in the known values, with weights that depend on their steps alone: they
are worked out in float64 on the host, and a forecast is one weighted sum.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Protocol

import numpy as np
from numpy.typing import NDArray

from migm.runtime.kinds import Limits, Whole

Weights = NDArray[np.float64]


class Extrapolation(Protocol):
    history: int  # how many values it looks back at

    def weights(self, times: Sequence[int], step: int) -> Weights:
        """Weights of the values at `times`, ascending full steps, at most `history` of them, for the one at `step`."""
        ...


class Taylor:
    """TaylorSeer (arXiv 2503.06923): backward differences of the full steps as derivatives at the last of them.

    Exact on lines at any spacing; beyond order 1 the differences are not derivatives at that step, and
    `Newton` is exact instead.
    """

    def __init__(self, max_order: Whole):
        self.max_order, self.history = max_order, max_order + 1

    def weights(self, times: Sequence[int], step: int) -> Weights:
        distance = step - times[-1]
        return sum_of(
            difference * distance**j / math.factorial(j) for j, difference in enumerate(differences(times, span=1))
        )


class Newton:
    """Newton's interpolation through the last full steps: exact on polynomials of its order at any spacing."""

    def __init__(self, max_order: Whole):
        self.max_order, self.history = max_order, max_order + 1

    def weights(self, times: Sequence[int], step: int) -> Weights:
        factors = [1.0]
        for time in reversed(times[1:]):
            factors.append(factors[-1] * (step - time))
        return sum_of(d * f for d, f in zip(differences(times), factors, strict=True))


class Hermite:
    """HiCache (arXiv 2508.16984): TaylorSeer's differences on physicists' Hermite polynomials, contracted by `scale`.

    F + sum over j >= 1 of D_j / j! * s^j * H_j(s k), k steps after the last full one. Order 1 is
    TaylorSeer's times 2 s^2.
    """

    def __init__(self, max_order: Whole, scale: Annotated[float, Limits(above=0, below=1)] = 0.5):
        self.max_order, self.scale = max_order, scale
        self.history = max_order + 1

    def weights(self, times: Sequence[int], step: int) -> Weights:
        at, s = self.scale * (step - times[-1]), self.scale
        values = [1.0, 2 * at]
        for j in range(1, len(times)):
            values.append(2 * at * values[j] - 2 * j * values[j - 1])
        known = enumerate(differences(times, span=1))
        return sum_of(d / math.factorial(j) * s**j * values[j] for j, d in known)


class FoCa:
    """FoCa (arXiv 2508.16211): forecast by a two-step BDF formula, calibrated by the slope of the full steps.

    Of the value one step on, P = ((1 + r)^2 F - r^2 F' + h (1 + r) S) / (1 + 2 r) from the last two
    values F', F at a distance of h / r and their slope S; then F + h / 2 (S_full + (P - F) / h). Cheap
    steps go on from each other's values, full steps from theirs and the last full one's. With steps of
    variable length it is exact on lines, and, being linear in two values, therefore the same as `Taylor`
    of order 1; `fixed_step` takes r = 1 as the published formula does, whatever the distance of the full steps.
    """

    history = 2

    def __init__(self, fixed_step: bool = False):
        self.fixed_step = fixed_step

    def weights(self, times: Sequence[int], step: int) -> Weights:
        values = np.eye(len(times))
        if len(times) == 1:
            return values[0]
        before, now = values
        gap = times[-1] - times[-2]
        full_slope = (now - before) / gap
        for _ in range(step - times[-1]):
            r, slope = 1.0 if self.fixed_step else 1 / gap, (now - before) / gap
            ahead = ((1 + r) ** 2 * now - r**2 * before + (1 + r) * slope) / (1 + 2 * r)
            before, now = now, now + (full_slope + ahead - now) / 2
            gap = 1
        return now


def differences(times: Sequence[int], span: int | None = None) -> list[Weights]:
    """Backward differences of orders 0, 1, ... at the last of `times`, as weights of the values there.

    Divided by the distance of all values that enter (Newton's), or of the last `span` + 1.
    """
    table, found = list(np.eye(len(times))), []
    for k in range(len(times)):
        found.append(table[-1])
        over = span or k + 1
        table = [
            (table[i + 1] - table[i]) / (times[i + k + 1] - times[i + k + 1 - over]) for i in range(len(table) - 1)
        ]
    return found


def sum_of(terms: Iterable[Weights]) -> Weights:
    return np.sum(list(terms), axis=0)
