"""The squared error of features."""

from dataclasses import dataclass

from migm.runtime.kinds import NotNegative
from migm.runtime.shapes import Scalar
from migm.training.terms.term import PredictedRows, over_rows


@dataclass(frozen=True)
class SquaredError:
    """Mean squared error of features on still masked rows (paper, section 3.3, equation of the MSE loss).

    With a `floor`, rows that are not masked count too, by that weight; the weights of an image are scaled to sum to its
    number of masked rows.
    """

    weight: NotNegative = 1.0
    floor: NotNegative = 0.0

    def value(self, seen: PredictedRows) -> Scalar:
        if not self.floor:
            return seen.mse
        of_rows = (seen.features.float() - seen.wide).square().mean(-1)
        weights = seen.rows.float().clamp(min=self.floor)
        return over_rows((of_rows * weights).sum(1) / weights.sum(1), seen.rows.sum(1))
