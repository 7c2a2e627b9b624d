"""A sampler: what it is called, what tells its images from others, and that images are its decoded tokens."""

from dataclasses import replace

import pytest
import torch

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.reuse import Reuse
from migm.accelerators.refresh import Always, Uniform
from migm.accelerators.teacache import Accumulate
from migm.sampling.sampler import VANILLA, Sampler, point_label, vanilla
from migm.sampling.select import Confidence

LABELS, NUMBERS = torch.tensor([3, 7, 1]), torch.tensor([0, 6, 2])


@pytest.fixture
def make(tiny_base, make_sampling):
    """A sampler of the tiny base with an accelerator, by default none."""

    def sampler(accelerator=VANILLA, variant="", **changes):
        return Sampler(tiny_base, make_sampling(**changes), accelerator, variant)

    return sampler


def reuse(b=2, of="features"):
    return Accelerator(Uniform(b), Reuse(of), "reuse")


ADAPTIVE = Accelerator(Accumulate(0.3), Reuse(), "teacache")


def test_without_an_accelerator_it_is_vanilla(tiny_base, make_sampling, make):
    plain = Sampler(tiny_base, make_sampling())
    assert plain.accelerator == Accelerator(Always())
    assert (plain.plan(), plain.num_steps, plain.num_full_steps) == ([True] * 6, 6, 6)
    assert (plain.label, plain.identity["accelerator"]) == ("vanilla 6", "vanilla")
    assert vanilla(make(reuse(), "of=residual")) == plain


@pytest.mark.parametrize(
    ("accelerator", "plan", "full"),
    [(reuse(), [1, 0, 0, 1, 0, 0], 2), (reuse(6), [1] * 6, 6), (ADAPTIVE, None, 0)],
)
def test_a_plan_says_where_the_base_runs_unless_that_is_decided_while_sampling(make, accelerator, plan, full):
    sampler = make(accelerator)
    assert sampler.plan() == (None if plan is None else list(map(bool, plan)))
    assert sampler.num_full_steps == full


@pytest.mark.parametrize(
    ("accelerator", "variant", "label"),
    [
        (reuse(), "", "reuse 6,2"),
        (reuse(6), "", "reuse 6"),
        (reuse(2, "residual"), "of=residual", "reuse 6,2 of=residual"),
        (ADAPTIVE, "", "teacache 6"),
    ],
)
def test_a_label_names_accelerator_n_b_and_variant(make, accelerator, variant, label):
    sampler = make(accelerator, variant)
    assert sampler.label == label
    assert label == point_label(accelerator.name, 6, sampler.num_full_steps, variant)


def test_an_identity_is_all_that_images_depend_on(make, tiny_base):
    assert make(reuse(2, "residual"), "of=residual").identity == {
        "accelerator": "reuse",
        "variant": "of=residual",
        "num_steps": 6,
        "num_full_steps": 2,
        "settings": "Uniform(num_full_steps=2), Reuse(of=residual)",
        "base": tiny_base.fingerprint(),
        "predictor": "",
        "sampling": "Sampling(schedule=Increments(), draw=InverseCDF(inverse_temperature=0.3), "
        "select=Confidence(temperature=4.5), guidance=Ramp(guidance_scale=2))",
    }


def test_every_part_of_a_sampler_reaches_its_identity(make, make_base, make_sampling, make_accelerator):
    first = make(reuse())
    others = {
        "accelerator": [replace(first, accelerator=Accelerator(Uniform(2), Reuse(), "mine"))],
        "num_steps": [make(reuse(), num_steps=7)],
        "num_full_steps": [make(reuse(3))],
        "settings": [make(reuse(3)), make(reuse(2, "residual")), make(Accelerator(Always(), name="reuse"))],
        "base": [Sampler(make_base(seed=1), make_sampling(), reuse())],
        "sampling": [make(reuse(), select=Confidence(4.0)), make(reuse(), guidance=None)],
    }
    for key, samplers in others.items():
        assert all(sampler.identity[key] != first.identity[key] for sampler in samplers), key


def test_the_number_of_full_steps_of_the_sampling_alone_changes_nothing(make):
    assert make(reuse(), num_full_steps=5).identity == make(reuse(), num_full_steps=2).identity


@pytest.mark.parametrize("name", ["vanilla", "reuse", "shortcut"])
def test_images_are_the_decoded_tokens(make, make_accelerator, tiny_base, name):
    sampler, seen = make(make_accelerator(name)), []

    class Watch:
        def on_step(self, record):
            seen.append(record.index)

    tokens = sampler.tokens(LABELS, sampler.noise(4, NUMBERS))
    images = sampler.images(LABELS, 4, NUMBERS, [Watch()])
    assert (images.dtype, tuple(images.shape)) == (torch.uint8, (3, 3, 16, 16))
    assert torch.equal(images, tiny_base.decode(tokens))
    assert seen == list(range(6))


def test_images_keep_what_is_given(make, tiny_base):
    sampler, initial = make(reuse()), torch.arange(16).expand(3, -1).clone()
    initial[:, 5:9] = 24
    tokens = sampler.tokens(LABELS, sampler.noise(0, NUMBERS), initial=initial)
    assert torch.equal(tokens[:, [*range(5), *range(9, 16)]], initial[:, [*range(5), *range(9, 16)]])
    assert torch.equal(sampler.images(LABELS, 0, NUMBERS, initial=initial), tiny_base.decode(tokens))


def test_stepping_through_a_generation_is_what_tokens_does(make):
    sampler = make(reuse())
    wanted = sampler.tokens(LABELS, sampler.noise(0, NUMBERS))
    with torch.inference_mode():
        generation = sampler.start(LABELS, sampler.noise(0, NUMBERS))
        assert [record.is_full for record in generation] == sampler.plan()
        assert torch.equal(generation.result(), wanted)
        assert list(generation) == []  # nothing is left to do
