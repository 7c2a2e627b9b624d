"""Fig. 1: similarity of the features of a generation's steps, and the path of the features."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from migm.analyses.recording import COLOURS, Setting, cosine, record
from migm.runtime.errors import UserError
from migm.runtime.extras import optional
from migm.runtime.figures import panels, write_figure
from migm.runtime.kinds import Count, Positive


class TrajectorySimilarity:
    """Cosine similarity of every two steps' features, mean over `num_images`, and t-SNE of all features.

    The features of an image form one vector of all its image rows. The similarity to other images at the same
    step is the yardstick.
    """

    def __init__(self, num_images: Count = 10, perplexity: Positive = 12.0):
        self.num_images, self.perplexity = num_images, perplexity

    def run(self, setting: Setting, figure: Path) -> dict[str, object]:
        features = record(setting, torch.arange(self.num_images)).features.flatten(2)  # (b, n, l * c)
        n = features.shape[1]
        alike = cosine(features[:, :, None], features[:, None]).mean(0)  # (n, n)
        others = cosine(features[:, None], features[None])  # (b, b, n)
        between = others[~torch.eye(self.num_images, dtype=torch.bool)].mean(0)
        self._draw(alike, embedded(features, self.perplexity, setting.seed), figure)
        return {
            "consecutive_steps": alike.diagonal(1).tolist(),
            "first_and_last": float(alike[0, -1]),
            "mean_of_consecutive": float(alike.diagonal(1).mean()),
            "mean_four_apart": float(alike.diagonal(min(4, n - 1)).mean()),
            "other_images_at_the_last_step": float(between[-1]),
        }

    def _draw(self, alike: Tensor, places: np.ndarray, path: Path) -> None:
        figure, (left, right) = panels(2)
        shown = left.imshow(alike, cmap="magma", origin="lower")
        figure.colorbar(shown, ax=left, label="cosine similarity", shrink=0.85)
        left.set(xlabel="step", ylabel="step", title="features of two steps")
        steps = np.arange(places.shape[1])
        for line in places:
            right.plot(*line.T, color="#98a2b3", linewidth=0.8, zorder=1)
            points = right.scatter(*line.T, c=steps, cmap=COLOURS, s=18, zorder=2)
        figure.colorbar(points, ax=right, label="step", shrink=0.85)
        right.set(xticks=[], yticks=[], title=f"t-SNE, {len(places)} images")
        write_figure(figure, path)


def embedded(features: Tensor, perplexity: float, seed: int) -> np.ndarray:
    """Embed features (b, n, d) by t-SNE in the plane, (b, n, 2)."""
    manifold: Any = optional("sklearn.manifold", "analysis=trajectories")
    flat = features.flatten(0, 1).numpy()
    if not 0 < perplexity < len(flat):
        raise UserError(f"analyses.trajectories.perplexity={perplexity} must be between 0 and {len(flat)}, the points")
    places = manifold.TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(flat)
    return places.reshape(*features.shape[:2], 2)
