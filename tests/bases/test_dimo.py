"""Di[M]O behind the base contract: one step, start tokens and noise of each image, and what it refuses."""

import math

import pytest
import torch
from meissonic_parts import meissonic_base
from tiny_parts import composed

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.extrapolation import Taylor
from migm.accelerators.predictors.forecast import Forecast
from migm.accelerators.refresh import Interval
from migm.bases.amused import AmusedVQ
from migm.bases.base import OneStepBase
from migm.bases.dimo import CODES, EMBEDDED, MASKED, DiMOMaskGIT, DiMOMeissonic
from migm.bases.tokenizer import ConvVQ
from migm.bases.transformer import MaskTransformer
from migm.config.building import load
from migm.config.roots import PlanConfig
from migm.runtime.errors import UserError
from migm.sampling.draw import Likeliest
from migm.sampling.guidance import Constant
from migm.sampling.loop import Sampling
from migm.sampling.noise import DRAW, SELECT, DrawnAhead, KeyedNoise
from migm.sampling.sampler import Sampler
from migm.sampling.schedule import CosineFloor
from migm.sampling.select import Random


def maskgit(**changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = MaskTransformer(16, 24, 10, 48, 2, 4, 96, mask_logit=changes.pop("mask_logit", True))
        torch.nn.init.normal_(net.bias)
        vq = ConvVQ(num_codes=24, code_channels=4, channels=8, depth=1)
        settings = {"random_weights": True, "dtype": "float64", "device": "cpu"}
        return DiMOMaskGIT(transformer=net, tokenizer=vq, **settings, **changes)


def meissonic(**changes):
    return meissonic_base(kind=DiMOMeissonic, **changes)


MADE = {"maskgit": (maskgit, torch.tensor([3, 7, 0])), "meissonic": (meissonic, ["a red bird", "a cat", "a ship"])}


@pytest.fixture(params=MADE)
def made(request):
    return MADE[request.param]


def one_step(**changes):
    parts = {"num_steps": 1, "num_full_steps": 1, "schedule": CosineFloor(), "draw": Likeliest(), "select": Random()}
    return Sampling(**{**parts, **changes})


def some(inputs, images):
    return inputs[images] if isinstance(inputs, torch.Tensor) else [inputs[i] for i in images]


def test_an_image_is_the_same_alone_and_in_a_batch_and_another_by_another_seed(made):
    make, inputs = made
    base = make()
    assert isinstance(base, OneStepBase)
    sampler = Sampler(base, one_step())
    together = sampler.tokens(inputs, sampler.noise(0, torch.arange(3)))
    assert together.shape == (3, base.spec.num_tokens)
    assert int(together.max()) < base.spec.vocab_size
    for image in range(3):
        alone = sampler.tokens(some(inputs, [image]), sampler.noise(0, torch.tensor([image])))
        assert torch.equal(alone[0], together[image])
    assert not torch.equal(sampler.tokens(inputs, sampler.noise(1, torch.arange(3))), together)


@pytest.mark.parametrize(("ratio", "masked"), [(0.0, 1), (0.5, None), (1.0, None)])
def test_so_many_positions_begin_masked_and_the_others_with_any_code(made, ratio, masked):
    make, inputs = made
    base = make(ratio=ratio)
    sampler = Sampler(base, one_step())
    begun = sampler.start(inputs, KeyedNoise(0, torch.arange(3)))
    number = masked or round(base.spec.num_tokens * ratio)
    assert ((begun.tokens == base.spec.vocab_size).sum(1) == number).all()
    assert begun.masked.shape[1] == base.spec.num_tokens  # all are drawn
    if ratio == 0:
        assert len(begun.tokens.unique()) > 15


def test_noise_is_normal_of_its_scale_and_of_every_token(made):
    make, inputs = made
    base = make(sigma=0.6)
    noise = Sampler(base, one_step()).start(inputs, KeyedNoise(0, torch.arange(3))).branches[0].noise
    assert noise.shape == (3, base.spec.num_tokens, base.spec.channels)
    assert abs(float(noise.mean())) < 0.05
    assert abs(float(noise.std()) - 1) < 0.05
    embedded = torch.ones_like(noise)
    assert torch.equal(base.blended(embedded, noise), 0.6 * noise + math.sqrt(1 - 0.6**2) * embedded)
    plain = Sampler(make(sigma=0.0), one_step()).start(inputs, KeyedNoise(0, torch.arange(3)))
    assert plain.branches[0].noise is None


def test_noise_reaches_the_features_and_purposes_differ(made):
    make, inputs = made
    features = []
    for sigma in (0.0, 0.3):
        begun = Sampler(make(sigma=sigma), one_step()).start(inputs, KeyedNoise(0, torch.arange(3)))
        features.append(begun.step().features[0])
    assert float((features[0] - features[1]).abs().max()) > 1e-3
    noise, positions = KeyedNoise(0, torch.arange(1)), torch.arange(5)[None]
    values = [noise.uniform(purpose, 0, positions) for purpose in (CODES, MASKED, EMBEDDED, DRAW, SELECT, -1)]
    assert len({tuple(value[0].tolist()) for value in values}) == 6
    ahead = DrawnAhead(noise, 1, 5)
    assert torch.equal(ahead.uniform(CODES, 0, positions), values[0])


def test_any_method_leaves_the_one_step_as_it_is(made):
    make, inputs = made
    base = make()
    plain = Sampler(base, one_step())
    method = Sampler(base, one_step(), Accelerator(Interval(4), Forecast(Taylor(1), "module"), "taylorseer_module"))
    assert torch.equal(
        plain.tokens(inputs, plain.noise(0, torch.arange(3))), method.tokens(inputs, plain.noise(0, torch.arange(3)))
    )


def refused(call, *args, **kwargs):
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_it_cannot_do_is_refused(made):
    make, inputs = made
    base = make()
    name = type(base).__name__
    assert refused(Sampler, base, one_step(num_steps=4)) == (
        f"sampling.num_steps=4: {name} draws every position in one step; set sampling.num_steps=1"
    )
    guided = Sampler(base, one_step(guidance=Constant(2.0, "logits")))
    noise = guided.noise(0, torch.arange(3))
    assert refused(guided.tokens, inputs, noise).endswith("was distilled with it; set sampling.guidance=null")
    known = torch.full((3, base.spec.num_tokens), base.spec.vocab_size)
    sampler = Sampler(base, one_step())
    assert "draws every position anew" in refused(sampler.tokens, inputs, noise, initial=known)
    assert refused(base.tokenize, torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).startswith("image: ")


def test_the_mask_has_to_be_drawn_on_maskgit():
    assert refused(maskgit, mask_logit=False).startswith("base.transformer.mask_logit=False, but Di[M]O draws")


def test_fingerprints_cover_ratio_and_sigma(made):
    make, _ = made
    prints = [make(**changes).fingerprint() for changes in ({}, {"ratio": 0.7}, {"sigma": 0.2})]
    assert len(set(prints)) == 3
    assert make().fingerprint() == prints[0]


def test_the_timestep_is_zero():
    base = meissonic()
    begun = Sampler(base, one_step()).start(["a"], KeyedNoise(0, torch.arange(1)))
    assert base.timestep(begun.step().moment).tolist() == [0]


@pytest.mark.parametrize("base", ["dimo_meissonic", "dimo_maskgit"])
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("base.ratio=2", "base.ratio=2 must be a number from 0 to 1"),
        ("base.sigma=-1", "base.sigma=-1 must be a number from 0 to 1"),
        ("+base.sigmas=1", "config key base.sigmas is unknown"),
        ("base.device=tpu", "base.device=tpu is unknown"),
    ],
)
def test_its_config_is_checked_as_that_of_its_parent(base, override, words):
    assert words in refused(load, composed("plan", f"base={base}", override), PlanConfig)


def test_grey_levels_are_rounded_down_where_the_original_does():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        near = AmusedVQ([32, 32], 1, 8, 24)
    down = AmusedVQ([32, 32], 1, 8, 24, rounding="down")
    down.load_state_dict(near.state_dict())
    tokens = torch.arange(16)[None]
    difference = near.eval().to_images(tokens, (4, 4)).int() - down.eval().to_images(tokens, (4, 4)).int()
    assert set(difference.unique().tolist()) == {0, 1}
