"""Meissonic and Di[M]O on a pretended CUDA device: what they give on the CPU, to the bit."""

import torch
from meissonic_parts import meissonic_base
from pretend_cuda import pretended

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.extrapolation import Taylor
from migm.accelerators.predictors.forecast import Forecast
from migm.accelerators.predictors.ml_cache import Subset
from migm.accelerators.predictors.recap import Target
from migm.accelerators.refresh import Groups, Uniform
from migm.bases.base import Moment
from migm.bases.dimo import DiMOMeissonic
from migm.sampling.draw import GumbelMax, Likeliest
from migm.sampling.guidance import Constant
from migm.sampling.loop import Sampling
from migm.sampling.sampler import VANILLA, Sampler
from migm.sampling.schedule import CosineFloor
from migm.sampling.select import Confidence, Random

PROMPTS, NUMBERS = ["a red bird", "a cat", "a ship"], torch.arange(3)


def drawn(sampler, initial=None):
    return sampler.tokens(PROMPTS, sampler.noise(0, NUMBERS), initial=initial)


def images(device):
    """Tokens and images of every kind of method, in-painting and one step among them."""
    base = meissonic_base(device=device)
    parts = CosineFloor(at_least_one=True), GumbelMax(), Confidence(2.0, dtype="float32"), Constant(8.0, "logits")
    sampling, found = Sampling(5, 2, *parts), []
    initial = torch.arange(48).remainder(24).where(torch.arange(48) % 3 > 0, 24).expand(3, -1)
    layers = Accelerator(Uniform(2), Forecast(Taylor(1), "module"), "taylorseer")
    cache = Accelerator(Uniform(2), Subset(0.6, force_new=True), "ml_cache")
    recap = Accelerator(Groups(2), Target(recompute_condition=True), "recap")
    for accelerator, given in ((VANILLA, None), (VANILLA, initial), (layers, None), (cache, None), (recap, None)):
        tokens = drawn(Sampler(base, sampling, accelerator), given)
        found += [tokens.cpu(), base.decode(tokens).cpu()]
    branch = base.branch(base.encode(PROMPTS, guided=True)[0].condition)  # as a training reads what was stored
    again = base.features(tokens.repeat(2, 1), branch, Moment.first(6, 5, base.device))
    one_step = Sampling(1, 1, CosineFloor(), Likeliest(top_k=9, top_p=0.9), Random())
    tokens = drawn(Sampler(meissonic_base(device=device, kind=DiMOMeissonic), one_step))
    return [*found, again.cpu(), tokens.cpu(), base.tokenize(found[1]).cpu()]


def test_tokens_and_images_are_those_of_the_cpu():
    wanted = images("cpu")
    with pretended():
        found = images("cuda")
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
