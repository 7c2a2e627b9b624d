"""How far the features that an accelerator works with are from the true ones, step by step."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from migm.analyses.drawing import panels, save
from migm.analyses.recording import Setting
from migm.bases.base import Base, StepRecord, image_rows
from migm.evaluation.cost import Point
from migm.reporting.plots import colours
from migm.runtime.errors import UserError
from migm.runtime.kinds import Count
from migm.sampling.loop import generate_images


class FeatureError:
    """Relative squared error of the features at masked rows, along each point's own run of `num_images`.

    The true features are what the base makes of the tokens that the accelerated run has reached:
    both guidance halves count. Full steps are 0.
    """

    def __init__(self, num_images: Count = 10):
        self.num_images = num_images

    def run(self, setting: Setting, figure: Path) -> dict[str, object]:
        points = [point for point in setting.points if point.full_steps < point.sampling.num_steps]
        if not points:
            raise UserError("analysis=feature_error needs points with fewer full steps than steps")
        errors = {point.label: self._errors(setting, point) for point in points}
        drawn, (axis,) = panels(1, 8.0, 4.6)
        shades = colours(point.accelerator.name for point in points)
        styles = ["-", "--", ":", "-."]
        for number, point in enumerate(points):
            same = [p for p in points[:number] if p.accelerator.name == point.accelerator.name]
            look = {"color": shades[point.accelerator.name], "linestyle": styles[len(same) % 4], "marker": "o"}
            axis.plot(range(len(errors[point.label])), errors[point.label], markersize=3.5, label=point.label, **look)
        axis.set(xlabel="step", ylabel="relative squared error at masked rows", ylim=(0, None))
        axis.grid(alpha=0.25)
        axis.legend(frameon=False, fontsize=8)
        save(drawn, figure)
        cheap = {label: [error for error in found if error > 0] for label, found in errors.items()}
        return {**errors, "mean_over_cheap_steps": {label: sum(x) / len(x) for label, x in cheap.items() if x}}

    def _errors(self, setting: Setting, point: Point) -> list[float]:
        images, watch = torch.arange(self.num_images), _Errors(setting.base)
        rest: dict[str, Any] = {"sampling": point.sampling, "accelerator": point.accelerator, "observers": [watch]}
        generate_images(setting.base, setting.inputs(images), images, setting.seed, **rest)
        return watch.errors


class _Errors:
    """An observer that compares every cheap step's features with those of the base."""

    def __init__(self, base: Base):
        self.base = base
        self.errors: list[float] = []

    def on_step(self, record: StepRecord) -> None:
        if record.is_full:
            self.errors.append(0.0)
            return
        before = record.tokens_before(self.base.spec.vocab_size)
        masked = before == self.base.spec.vocab_size
        wrong, whole = 0.0, 0.0
        for branch, features in zip(record.branches, record.features, strict=True):
            true = image_rows(self.base.features(before, branch, record.mask_ratio), branch).float()
            off = (image_rows(features, branch).float() - true)[masked.repeat(branch.copies, 1)]
            wrong += float(squared(off))
            whole += float(squared(true[masked.repeat(branch.copies, 1)]))
        self.errors.append(wrong / whole)


def squared(x: Tensor) -> Tensor:
    """The sum of squares, in float64."""
    return x.double().square().sum()
