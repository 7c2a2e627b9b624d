"""Fig. 2: the effect on a trajectory of other draws from some step on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from migm.analyses.recording import COLOURS, Setting, record, step_lengths
from migm.runtime.errors import UserError
from migm.runtime.figures import panels, write_figure
from migm.runtime.kinds import Length, Limits, Whole


class Forks:
    """`num_forks` continuations of one image from each of `fork_steps`, on the first two principal components.

    All forks share the features of the fork's step but not the tokens that it reveals. `spread` is the mean
    distance between two forks one step later, in units of the step's own length. It is 0 if tokens do not
    matter, and sqrt(2) if only chance matters.
    """

    def __init__(
        self,
        fork_steps: Annotated[Sequence[Whole], Length()] = (2, 8),
        num_forks: Annotated[int, Limits(least=2)] = 8,
        image: Whole = 0,
    ):
        self.fork_steps, self.num_forks, self.image = list(fork_steps), num_forks, image

    def run(self, setting: Setting, figure: Path) -> dict[str, object]:
        last = setting.vanilla.num_steps - 2
        if max(self.fork_steps) > last:
            raise UserError(f"analyses.forks.fork_steps={self.fork_steps} must be from 0 to {last}")
        image, numbers = torch.tensor([self.image]), {}
        drawn, axes = panels(len(self.fork_steps))
        for axis, step in zip(axes, self.fork_steps, strict=True):
            runs = [record(setting, image, (step, run)).features for run in range(1, self.num_forks + 1)]
            features = torch.cat(runs)  # (runs, n, l, c)
            numbers[f"spread_after_step_{step}"] = spread(features, step)
            places, shares = principal(features.flatten(2))
            numbers[f"variance_on_the_plane_{step}"] = float(shares[:2].sum())
            steps = torch.arange(places.shape[1])
            for line in places:
                axis.plot(*line[: step + 1].T, color="#1d2433", linewidth=1.6, zorder=1)
                axis.plot(*line[step:].T, color="#98a2b3", linewidth=0.9, zorder=1)
                points = axis.scatter(*line.T, c=steps, cmap=COLOURS, s=18, zorder=2)
            axis.plot(*places[0, step], "o", color="#d1495b", markersize=11, markerfacecolor="none", markeredgewidth=2)
            first, second = (f"component {i + 1} ({shares[i]:.0%})" for i in range(2))
            axis.set(title=f"other draws from step {step} on", xlabel=first, ylabel=second)
        drawn.colorbar(points, ax=axes, label="step")
        write_figure(drawn, figure)
        return numbers


def spread(features: Tensor, step: int) -> float:
    """Return the mean distance between runs (r, n, l, c) one step after `step`, over the length of that step."""
    after = features[:, step + 1].flatten(1)
    return float(torch.pdist(after).mean() / step_lengths(features)[:, step].mean())


def principal(points: Tensor) -> tuple[Tensor, Tensor]:
    """Return points (r, n, d) on their first two principal components (r, n, 2), and all variance shares."""
    flat = points.flatten(0, 1)
    u, s, _ = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    return (u[:, :2] * s[:2]).unflatten(0, points.shape[:2]), s**2 / (s**2).sum()
