"""The Frechet distance that infinitely many images would have."""

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from migm.metrics.frechet import FrechetCifarNet, frechet_distance, moments

SIZES, DRAWS = 8, 2  # sizes of samples, and samples of each size


class FrechetCifarNetInf(FrechetCifarNet):
    """`fd_cifarnet_inf`: `fd_cifarnet` without the bias of few images (Chong and Forsyth 2020, FID infinity).

    The bias falls as 1 / n, by an amount that methods change, once there are as many images as features. So the
    distances of samples of half to all of the n images are fitted by a line in 1 / n; the value is where it meets 0.
    A fixed seed draws the samples.
    """

    metric_name = "fd_cifarnet_inf"
    unbiased = True  # nearly, from `min_images` on
    kept: list[Tensor] | Tensor

    def __init__(self, weights: str, reference: str | None):
        super().__init__(weights, reference)
        self.channels = self.net[0].channels
        self.min_images = 3 * self.channels // 2
        self.add_state("kept", [], dist_reduce_fx="cat", persistent=True)

    def too_few(self, num_images: int) -> str:
        return (
            f"evalset.num_images={num_images} is too few for {self.metric_name}, which needs {self.min_images}; choose "
            "more, or metric=[fd_cifarnet,class_agreement]"
        )

    def add(self, features: Tensor) -> None:
        assert isinstance(self.kept, list)
        self.kept.append(features.double().cpu())

    def compute(self) -> Tensor:
        """Return the intercept of the fit, in float64; fewer images than `min_images` give a poor one."""
        features, reference = dim_zero_cat(self.kept), (self.reference["mean"], self.reference["cov"])
        sizes, distances = [], []
        generator = torch.Generator().manual_seed(0)
        least = min(max(len(features) / 2, self.channels), len(features))
        for n in torch.linspace(least, len(features), SIZES).long().tolist():
            for _ in range(DRAWS if n < len(features) else 1):
                drawn = features[torch.randperm(len(features), generator=generator)[:n]]
                found = moments(torch.tensor(float(n)), drawn.sum(0), drawn.T @ drawn)
                sizes.append(1 / n)
                distances.append(frechet_distance(*found, *reference))
        line = torch.stack([torch.ones(len(sizes)), torch.tensor(sizes)], 1).double()
        return torch.linalg.lstsq(line, torch.stack(distances)[:, None]).solution[0, 0]
