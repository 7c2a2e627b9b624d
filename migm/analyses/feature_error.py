"""Distance of an accelerator's features from the true features, step by step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from migm.analyses.recording import Setting
from migm.bases.base import Base, StepRecord, image_rows
from migm.reporting.plots import colours
from migm.runtime.errors import UserError
from migm.runtime.figures import panels, write_figure
from migm.runtime.kinds import Count
from migm.sampling.sampler import Sampler


class FeatureError:
    """Relative squared error of the features at masked rows, along each point's own run of `num_images`.

    The true features are the base's, on the tokens that the accelerated run has reached. Both guidance halves
    count. The error of full steps is 0.
    """

    needs_points = True

    def __init__(self, num_images: Count = 10):
        self.num_images = num_images

    def run(self, setting: Setting, figure: Path) -> dict[str, object]:
        points = [sampler for sampler in setting.samplers if sampler.num_full_steps < sampler.num_steps]
        if not points:
            raise UserError("analysis=feature_error needs points with fewer full steps than steps")
        errors = {point.label: self._errors(setting, point) for point in points}
        drawn, (axis,) = panels(1, 8.0, 4.6)
        for point, look in zip(points, looks(points), strict=True):
            axis.plot(range(len(errors[point.label])), errors[point.label], **look)
        axis.set(xlabel="step", ylabel="relative squared error at masked rows", ylim=(0, None))
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8)
        write_figure(drawn, figure)
        cheap = {label: [error for error in by_step if error > 0] for label, by_step in errors.items()}
        return {**errors, "mean_over_cheap_steps": {label: sum(x) / len(x) for label, x in cheap.items() if x}}

    def _errors(self, setting: Setting, sampler: Sampler) -> list[float]:
        watch = _Errors(sampler.base)
        setting.watch(sampler, torch.arange(self.num_images), watch)
        return watch.errors


def looks(points: Sequence[Sampler]) -> list[dict[str, Any]]:
    """Return how the line of each point is drawn: a colour for each accelerator, a style for each of its points."""
    shades, styles = colours(point.accelerator.name for point in points), ["-", "--", ":", "-."]
    found: list[dict[str, Any]] = []
    for number, point in enumerate(points):
        name = point.accelerator.name
        before = sum(other.accelerator.name == name for other in points[:number])
        line = {"color": shades[name], "linestyle": styles[before % 4], "marker": "o", "markersize": 3.5}
        found.append({**line, "label": point.label})
    return found


class _Errors:
    """Observer that compares every cheap step's features with those of the base."""

    def __init__(self, base: Base):
        self.base = base
        self.errors: list[float] = []

    def on_step(self, record: StepRecord) -> None:
        if record.is_full:
            self.errors.append(0.0)
            return
        before = record.tokens_before(self.base.spec.vocab_size)
        masked = before == self.base.spec.vocab_size
        squared_error, squared_norm = 0.0, 0.0
        for branch, features in zip(record.branches, record.features, strict=True):
            true = image_rows(self.base.features(before, branch, record.moment), branch).float()
            difference = (image_rows(features, branch).float() - true)[masked.repeat(branch.copies, 1)]
            squared_error += float(squared(difference))
            squared_norm += float(squared(true[masked.repeat(branch.copies, 1)]))
        self.errors.append(squared_error / squared_norm)


def squared(x: Tensor) -> Tensor:
    """Return the sum of squares, in float64."""
    return x.double().square().sum()
