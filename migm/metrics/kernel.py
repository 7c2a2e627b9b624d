"""The kernel distance between generated and reference images, which few images do not bias."""

from torch import Tensor

from migm.metrics.frechet import FrechetCifarNet

OFFSET = 1.0  # of the kernel, as in KID


class KernelCifarNet(FrechetCifarNet):
    """`kd_cifarnet`: squared kernel distance (MMD, Gretton et al. 2012) in the features of the bundled net.

    The kernel is (x y / channels + 1)^2: that of KID (Binkowski et al. 2018) of degree 2, for which mean and covariance
    of the reference are enough. Its expectation is the same for any number of images, at least 2, so that it compares
    methods at a hundred; near 0 it may be negative. The reference counts as all there is. Unit: as KID, smaller is
    better.
    """

    metric_name = "kd_cifarnet"
    unbiased = True
    own: Tensor

    def __init__(self, weights: str, reference: str | None):
        super().__init__(weights, reference)
        self.add_sums("own")  # kernel of each image with itself

    def add(self, features: Tensor) -> None:
        super().add(features)
        self.own += self._kernel(features.double().square().sum(1)).sum()

    def compute(self) -> Tensor:
        """Return the distance in float64."""
        mean, cov = self.moments()
        n = int(self.count)
        real = self.reference["mean"], self.reference["cov"]
        # Sums of the kernel over pairs follow from moments: (g x y + 1)^2 = g^2 <x x', y y'> + 2 g x y + 1.
        second, real_second = (cov * (n - 1) / n + mean.outer(mean)), real[1] + real[0].outer(real[0])
        within = (self._mean(mean, second, mean, second) * n * n - float(self.own)) / (n * (n - 1))
        across = self._mean(mean, second, real[0], real_second)
        return within - 2 * across + self._mean(real[0], real_second, real[0], real_second)

    def _kernel(self, product: Tensor) -> Tensor:
        return (product / self.net[0].channels + OFFSET).square()

    def _mean(self, mean_a: Tensor, second_a: Tensor, mean_b: Tensor, second_b: Tensor) -> Tensor:
        """Return the mean kernel of all pairs of two sets with these means (c,) and second moments (c, c)."""
        scale = 1 / self.net[0].channels
        products = scale**2 * (second_a * second_b).sum() + 2 * OFFSET * scale * mean_a @ mean_b
        return products + OFFSET**2
