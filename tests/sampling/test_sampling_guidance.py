"""Guidance: its formula, its scale over time, and that it may come before the linear head."""

import pytest
import torch

from migm.bases.base import Branch
from migm.sampling.guidance import Constant, Ramp, combine
from migm.sampling.loop import guided


def halves(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 5, 7, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 0.5, 4.0])
def test_combine_is_the_formula_in_at_least_float32_and_leaves_its_inputs_alone(dtype, scale):
    conditional, unconditional = halves(dtype)
    before = conditional.clone(), unconditional.clone()
    got = combine(conditional, unconditional, scale)
    exact = (1 + scale) * conditional.double() - scale * unconditional.double()
    assert got.dtype == dtype
    # One rounding, of the result: bfloat16 keeps 8 bits.
    torch.testing.assert_close(got.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)
    assert torch.equal(conditional, before[0])
    assert torch.equal(unconditional, before[1])
    if scale == 0:
        assert torch.equal(got, conditional)


def test_ramp_goes_linearly_from_zero_to_the_scale():
    scales = [Ramp(2.8).scale(i, 15) for i in range(15)]
    assert scales[0] == 0
    assert scales[-1] == 2.8
    torch.testing.assert_close(torch.tensor(scales).diff(), torch.full((14,), 0.2))
    assert Ramp(2.8).scale(0, 1) == 0


def test_constant_is_constant():
    assert [Constant(3.0).scale(i, 4) for i in range(4)] == [3.0] * 4


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.8])
def test_guidance_of_features_equals_guidance_of_logits(tiny_base, scale):
    tokens = torch.randint(0, 25, (2, 16), generator=torch.Generator().manual_seed(3))
    branches = tiny_base.encode(torch.tensor([1, 8]), guided=True)
    features = [tiny_base.features(tokens, branches[0], torch.ones(2))]
    positions = torch.tensor([[0, 3, 9], [2, 4, 15]])
    in_features = tiny_base.head(guided(branches, features, scale), positions)
    conditional, unconditional = (tiny_base.head(half, positions) for half in features[0].chunk(2))
    torch.testing.assert_close(in_features, combine(conditional, unconditional, scale), rtol=1e-10, atol=1e-10)
    if scale:
        assert not torch.allclose(in_features, conditional, atol=0.1)


def test_two_branches_of_one_copy_equal_one_branch_of_two(tiny_base):
    (both,) = tiny_base.encode(torch.tensor([1, 8]), guided=True)
    one, none = (Branch(condition) for condition in both.condition.chunk(2))
    features = tiny_base.features(torch.full((2, 16), 24), both, torch.ones(2))
    apart = guided([one, none], list(features.chunk(2)), 1.5)
    assert torch.equal(apart, guided([both], [features], 1.5))


def test_a_single_branch_passes_unchanged():
    features = halves()[0]
    assert torch.equal(guided([Branch(torch.zeros(2))], [features], 3.0), features)
