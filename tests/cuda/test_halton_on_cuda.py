"""Halton-MaskGIT on a pretended CUDA device: what it gives on the CPU, to the bit."""

import torch
from pretend_cuda import pretended
from tiny_parts import halton_base

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.extrapolation import Taylor
from migm.accelerators.predictors.forecast import Forecast
from migm.accelerators.predictors.ml_cache import Subset
from migm.accelerators.refresh import Uniform
from migm.sampling.draw import Annealed
from migm.sampling.guidance import Constant
from migm.sampling.loop import Sampling
from migm.sampling.order import Halton
from migm.sampling.sampler import VANILLA, Sampler
from migm.sampling.schedule import Totals
from migm.sampling.select import Random


def images(device):
    """Tokens and images of every kind of method, in-painting among them."""
    base = halton_base(device=device)
    sampling = Sampling(5, 2, Totals(), Annealed(warm_up=1), Random(), Constant(1.0), Halton(roll=True))
    layers = Accelerator(Uniform(2), Forecast(Taylor(1), "module"), "taylorseer")
    found, labels, numbers = [], torch.tensor([3, 7, 0]), torch.arange(3)
    initial = torch.arange(16).where(torch.arange(16) % 3 > 0, 24).expand(3, -1)
    cache = Accelerator(Uniform(2), Subset(0.6), "ml_cache")
    for accelerator, given in ((VANILLA, None), (VANILLA, initial), (layers, None), (cache, None)):
        sampler = Sampler(base, sampling, accelerator)
        tokens = sampler.tokens(labels, sampler.noise(0, numbers), initial=given)
        found += [tokens.cpu(), base.decode(tokens).cpu()]
    return [*found, base.tokenize(found[1]).cpu()]


def test_tokens_and_images_are_those_of_the_cpu():
    wanted = images("cpu")
    with pretended():
        found = images("cuda")
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
