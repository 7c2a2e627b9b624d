"""Extrapolate the values of the last full steps (docs/originals/methods.md, TaylorSeer, HiCache, FoCa).

Every rule is linear in the past values, with weights that depend on the step numbers alone. The weights are computed in
float64 on the host, and a forecast is one weighted sum.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from migm.runtime.kinds import Limits, Whole

Weights = NDArray[np.float64]


class Extrapolation(Protocol):
    @property
    def history(self) -> int:
        """The number of past values that the rule uses."""
        ...

    def weights(self, times: Sequence[int], step: int) -> Weights:
        """Return weights that forecast `step` from the values at `times`, at most `history` ascending full steps."""
        ...


@dataclass(frozen=True)
class _OfOrder:
    max_order: Whole

    @property
    def history(self) -> int:
        return self.max_order + 1


@dataclass(frozen=True)
class Taylor(_OfOrder):
    """TaylorSeer (arXiv 2503.06923): backward differences of the full steps, taken as derivatives at the last one.

    Exact on lines at any spacing. Beyond order 1 the differences are not derivatives at that step; there `Newton` is
    exact.
    """

    def weights(self, times: Sequence[int], step: int) -> Weights:
        distance = step - times[-1]
        return sum_of(
            difference * distance**j / math.factorial(j) for j, difference in enumerate(differences(times, span=1))
        )


@dataclass(frozen=True)
class Newton(_OfOrder):
    """Newton's interpolation through the last full steps: exact on polynomials of its order at any spacing."""

    def weights(self, times: Sequence[int], step: int) -> Weights:
        factors = [1.0]
        for time in reversed(times[1:]):
            factors.append(factors[-1] * (step - time))
        return sum_of(d * f for d, f in zip(differences(times), factors, strict=True))


@dataclass(frozen=True)
class Hermite(_OfOrder):
    """HiCache (arXiv 2508.16984): TaylorSeer's differences on physicists' Hermite polynomials, contracted by `scale`.

    F + sum over j >= 1 of D_j / j! * s^j * H_j(s k), k steps after the last full one. The term of order 1 is
    TaylorSeer's times 2 s^2.
    """

    scale: Annotated[float, Limits(above=0, below=1)] = 0.5

    def weights(self, times: Sequence[int], step: int) -> Weights:
        at, s = self.scale * (step - times[-1]), self.scale
        values = [1.0, 2 * at]
        for j in range(1, len(times)):
            values.append(2 * at * values[j] - 2 * j * values[j - 1])
        orders = enumerate(differences(times, span=1))
        return sum_of(d / math.factorial(j) * s**j * values[j] for j, d in orders)


@dataclass(frozen=True)
class FoCa:
    """FoCa (arXiv 2508.16211): forecast by a two-step BDF formula, calibrated by the slope of the full steps.

    F', F are the last two values, at a distance of h / r, and S is their slope. The prediction for the next step is P =
    ((1 + r)^2 F - r^2 F' + h (1 + r) S) / (1 + 2 r); the forecast is F + h / 2 (S_full + (P - F) / h). Each cheap step
    goes on from the forecast of the one before, while S_full stays the slope of the last two full steps.

    With steps of variable length the rule is exact on lines. Being linear in two values, it therefore equals `Taylor`
    of order 1. `fixed_step` takes r = 1 at any distance of the full steps, as the published formula does.
    """

    fixed_step: bool = False

    history: ClassVar[int] = 2

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
    """Return backward differences of orders 0, 1, ... at the last of `times`, as weights of the values there.

    Each is divided by the distance of all values in it (Newton's), or of the last `span` + 1 values.
    """
    table, orders = list(np.eye(len(times))), []
    for k in range(len(times)):
        orders.append(table[-1])
        over = span or k + 1
        table = [
            (table[i + 1] - table[i]) / (times[i + k + 1] - times[i + k + 1 - over]) for i in range(len(table) - 1)
        ]
    return orders


def sum_of(terms: Iterable[Weights]) -> Weights:
    return np.sum(list(terms), axis=0)
