"""Fig. 3: smoothness of the map from features and new tokens to the next features."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from migm.analyses.recording import RowTrajectories, Setting, record
from migm.runtime.figures import panels, plain_ticks, write_figure
from migm.runtime.kinds import Count, Length, Whole


class LocalLipschitz:
    """Distances before and after a step between an image's run and runs that fork from it at each of `fork_steps`.

    An input is the features of a step and the embeddings of the tokens that it reveals, on all image rows; the
    output is the next features. The ratio of the distances bounds the map's local Lipschitz constant from below.
    At the fork the features are equal: without tokens as input no constant would be large enough.
    """

    def __init__(self, num_images: Count = 10, fork_steps: Annotated[Sequence[Whole], Length()] = (1, 4, 7, 10)):
        self.num_images, self.fork_steps = num_images, list(fork_steps)

    def run(self, setting: Setting, figure: Path) -> dict[str, object]:
        images = torch.arange(self.num_images)
        trunk, before, after, at_fork = record(setting, images), [], [], []
        for step in self.fork_steps:
            fork = record(setting, images, (step, 1))
            inputs, outputs = distances(trunk, fork)
            before.append(inputs[:, step:])
            after.append(outputs[:, step:])
            at_fork.append(torch.arange(inputs.shape[1])[step:].expand_as(before[-1]) == step)
        x, y, first = (torch.cat([part.flatten() for part in parts]) for parts in (before, after, at_fork))
        distinct = x > 0  # two runs may reveal the same tokens
        x, y, first = x[distinct], y[distinct], first[distinct]
        ratio = y / x
        self._draw(x, y, first, figure)
        return {
            "pairs": len(ratio),
            "median": float(ratio.median()),
            "percentile_95": float(ratio.quantile(0.95)),
            "largest": float(ratio.max()),
            "median_at_the_fork": float(ratio[first].median()),
            "median_later": float(ratio[~first].median()),
        }

    def _draw(self, x: Tensor, y: Tensor, first: Tensor, path: Path) -> None:
        figure, (left, right) = panels(2)
        for chosen, colour, label in (
            (~first, "#2e86ab", "later steps"),
            (first, "#d1495b", "fork: only tokens differ"),
        ):
            left.scatter(x[chosen], y[chosen], s=9, alpha=0.6, color=colour, linewidths=0, label=label)
        ends = torch.tensor([float(x.min()), float(x.max())])
        left.plot(ends, ends, "k:", linewidth=1, label="ratio 1")
        left.set(xscale="log", yscale="log", xlabel="distance of inputs", ylabel="distance of next features")
        plain_ticks(left.xaxis, left.yaxis)
        left.legend(frameon=False, fontsize=8)
        ratio = y / x
        bins = torch.linspace(0, float(ratio.quantile(0.995)), 50).tolist()
        right.hist([ratio[~first], ratio[first]], bins, stacked=True, color=["#2e86ab", "#d1495b"])
        right.axvline(float(ratio.median()), color="k", linestyle=":", label=f"median {ratio.median():.2f}")
        right.set(xlabel="local Lipschitz constant (ratio)", ylabel="pairs")
        right.legend(frameon=False, fontsize=8)
        write_figure(figure, path)


def distances(a: RowTrajectories, b: RowTrajectories) -> tuple[Tensor, Tensor]:
    """Return distances between two runs of inputs (features and new tokens) and next features, both (b, n - 1)."""
    pairs = (a.features, b.features), (a.revealed, b.revealed)
    features, revealed = ((x - y).flatten(2).norm(dim=-1) for x, y in pairs)
    return torch.hypot(features, revealed)[:, :-1], features[:, 1:]
