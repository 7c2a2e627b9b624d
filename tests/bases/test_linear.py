"""Linears in lower precision: what they compute."""

import copy

import pytest
import torch
from torch import nn

from migm.bases.linear import (
    FP8,
    KINDS,
    dequantised_product,
    scaled_product,
)
from migm.evaluation.cost import counted

LOWER = list(KINDS)


def linears(n=48, k=96, bias=True, seed=0):
    torch.manual_seed(seed)
    plain = nn.Linear(k, n, bias=bias).requires_grad_(False)
    plain.weight *= torch.logspace(-3, 2, n)[:, None]  # outputs of very different sizes
    return plain, {kind: made(plain.weight, plain.bias) for kind, made in KINDS.items()}


def relative(found, right):
    """The error of each output over its own size."""
    return (found.double() - right).norm(dim=0) / right.norm(dim=0)


@pytest.mark.parametrize(("kind", "limit"), [("fp8_rowwise", 0.05), ("int8_weights", 0.01)])
def test_every_output_is_near_the_exact_product_whatever_its_size_and_its_row(kind, limit):
    plain, lower = linears(bias=False)
    x = torch.randn(500, 96) * torch.logspace(-3, 3, 500)[:, None]
    sizes = x.norm(dim=1, keepdim=True)
    error = relative(lower[kind](x) / sizes, x.double() @ plain.weight.double().T / sizes)
    assert error.max() < limit
    assert error.min() > limit / 50  # it is not the plain product


@pytest.mark.parametrize("kind", LOWER)
def test_a_scale_belongs_to_one_output(kind):
    plain, lower = linears()
    largest = {"fp8_rowwise": 448, "int8_weights": 127}[kind]
    torch.testing.assert_close(lower[kind].scale, plain.weight.abs().amax(1)[None] / largest)
    back = lower[kind].weight.float() * lower[kind].scale.T
    step = {"fp8_rowwise": 2**-4, "int8_weights": 0.5 / 127}[kind]
    within = (back - plain.weight).abs() <= 1.001 * step * plain.weight.abs().amax(1, keepdim=True)
    assert within.all()
    assert lower[kind].weight.dtype.itemsize == 1


def test_a_row_of_inputs_does_not_change_another():
    _, lower = linears()
    x = torch.randn(6, 96)
    alone = lower["fp8_rowwise"](x[2:3])
    x[3] *= 1e6
    torch.testing.assert_close(lower["fp8_rowwise"](x)[2:3], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", LOWER)
def test_zeros_give_the_bias_and_no_rows_give_none(kind):
    plain, lower = linears()
    assert torch.equal(lower[kind](torch.zeros(2, 3, 96)), plain.bias.expand(2, 3, -1))
    assert lower[kind](torch.zeros(2, 0, 96)).shape == (2, 0, 48)
    zeros = KINDS[kind](torch.zeros(16, 32))
    assert torch.equal(zeros(torch.randn(4, 32)), torch.zeros(4, 16))


@pytest.mark.parametrize("kind", LOWER)
def test_some_outputs_are_those_of_all(kind):
    _, lower = linears()
    x = torch.randn(2, 5, 96)
    every, some = lower[kind](x), lower[kind](x, slice(16, 32))
    torch.testing.assert_close(some, every[..., 16:32], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", LOWER)
def test_another_dtype_is_that_of_the_bias_and_of_the_results_alone(kind, dtype):
    _, lower = linears()
    moved = copy.deepcopy(lower[kind]).to(dtype)
    for name in ("weight", "scale"):
        assert getattr(moved, name).dtype == getattr(lower[kind], name).dtype
        assert torch.equal(getattr(moved, name).float(), getattr(lower[kind], name).float())
    x = torch.randn(4, 96)
    found = moved(x.to(dtype))
    assert found.dtype == moved.bias.dtype == dtype
    torch.testing.assert_close(found.float(), lower[kind](x.to(dtype).float()), rtol=0.02, atol=0.02)
    assert moved.to("meta").weight.is_meta


def test_the_twin_multiplies_as_torch_does_in_8_bits():
    torch.manual_seed(0)
    x, weight = (torch.randn(n, 256).mul(100).to(FP8) for n in (37, 64))
    scales = torch.rand(37, 1) + 0.1, torch.rand(1, 64) + 0.1
    try:
        right = scaled_product(x, weight, *scales)
    except RuntimeError as error:
        pytest.skip(f"torch._scaled_mm does not run here: {error}")
    found = dequantised_product(x, weight, *scales)
    torch.testing.assert_close(found.bfloat16(), right, rtol=2**-7, atol=2**-7 * float(found.std()))


@pytest.mark.parametrize("kind", LOWER)
def test_one_graph_compiles_to_the_same_numbers(kind):
    _, lower = linears()
    compiled = torch.compile(lower[kind], fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 7, 96)
    torch.testing.assert_close(compiled(x), lower[kind](x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", LOWER)
def test_flops_are_those_of_plain_linears(kind):
    plain, lower = linears()
    x = torch.randn(2, 7, 96)
    assert counted(lambda: lower[kind](x)) == counted(lambda: plain(x)) == 2 * 14 * 96 * 48


def test_flops_of_a_product_in_8_bits_count_too():
    with torch.device("meta"):
        x, weight, scales = torch.empty(32, 64), torch.empty(48, 64), (torch.empty(32, 1), torch.empty(1, 48))
    assert counted(lambda: scaled_product(x.to(FP8), weight.to(FP8), *scales)) == 2 * 32 * 64 * 48
