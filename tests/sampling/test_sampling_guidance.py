"""Guidance: its formula, its scale over time, and that it may come before the linear head."""

from types import SimpleNamespace

import pytest
import torch
from tiny_parts import Apart, moment

from migm.bases.base import Branch, image_rows
from migm.sampling.guidance import Constant, Ramp, combine
from migm.sampling.loop import guided_logits


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


POSITIONS = torch.tensor([[0, 3, 9], [2, 4, 15]])


def step_of(base, guided=True):
    """Branches of two images and their features."""
    tokens = torch.randint(0, 25, (2, 16), generator=torch.Generator().manual_seed(3))
    branches = base.encode(torch.tensor([1, 8]), guided)
    return branches, [base.features(tokens, branch, moment(torch.ones(2))) for branch in branches]


def halves_of(base):
    """Conditional and unconditional logits of those images at `POSITIONS`."""
    (branch,), (features,) = step_of(base)
    return [base.head(half, POSITIONS) for half in image_rows(features, branch, POSITIONS).chunk(2)]


@pytest.mark.parametrize("on", ["features", "logits"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.8])
def test_guidance_of_features_equals_guidance_of_logits(tiny_base, scale, on):
    logits = guided_logits(tiny_base, *step_of(tiny_base), POSITIONS, Constant(scale, on), 0, 6)
    conditional, unconditional = halves_of(tiny_base)
    torch.testing.assert_close(logits, combine(conditional, unconditional, scale), rtol=1e-10, atol=1e-10)
    if scale:
        assert not torch.allclose(logits, conditional, atol=0.1)
    else:
        assert torch.equal(logits, conditional)


def test_the_scale_is_that_of_the_step(tiny_base):
    conditional, unconditional = halves_of(tiny_base)
    for step in range(6):
        logits = guided_logits(tiny_base, *step_of(tiny_base), POSITIONS, Ramp(2.8, "logits"), step, 6)
        wanted = combine(conditional, unconditional, 2.8 * step / 5)
        torch.testing.assert_close(logits, wanted, rtol=1e-10, atol=1e-10)


def test_only_guidance_on_logits_is_rounded_at_every_operation():
    """The published bfloat16 logits are so; the product and the sum of features are rounded once."""
    conditional, unconditional = halves(torch.bfloat16)
    base = SimpleNamespace(head=lambda features, positions: features)
    branch = Branch(torch.zeros(4, 1, dtype=torch.long), torch.arange(5).expand(4, -1), copies=2)
    step = ([branch], [torch.cat([conditional, unconditional])], torch.arange(5).expand(2, -1))
    on_logits = guided_logits(base, *step, Constant(4.0, "logits"), 0, 6)
    assert on_logits.dtype == torch.bfloat16
    assert torch.equal(on_logits, 5.0 * conditional - 4.0 * unconditional)
    on_features = guided_logits(base, *step, Constant(4.0), 0, 6)
    assert torch.equal(on_features, combine(conditional, unconditional, 4.0))
    assert not torch.equal(on_logits, on_features)


@pytest.mark.parametrize("on", ["features", "logits"])
def test_two_branches_of_different_length_equal_one_branch_of_two(tiny_base, on):
    apart = Apart(tiny_base)
    branches, features = step_of(apart)
    assert [f.shape for f in features] == [(2, 18, 48), (2, 17, 48)]
    wanted = guided_logits(tiny_base, *step_of(tiny_base), POSITIONS, Constant(1.5, on), 0, 6)
    logits = guided_logits(apart, branches, features, POSITIONS, Constant(1.5, on), 0, 6)
    torch.testing.assert_close(logits, wanted, rtol=1e-10, atol=1e-10)


def test_a_single_branch_passes_unchanged(tiny_base):
    (branch,), (features,) = step_of(tiny_base, guided=False)
    logits = guided_logits(tiny_base, [branch], [features], POSITIONS, None, 0, 6)
    assert torch.equal(logits, tiny_base.head(image_rows(features, branch, POSITIONS), POSITIONS))
