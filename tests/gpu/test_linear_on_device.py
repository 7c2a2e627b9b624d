"""8-bit floats on a real CUDA device: torch's product, and its twin in float32."""

import os

import pytest
import torch

from migm.bases.linear import KINDS, Float8Linear, dequantised_product, multiplies_fp8, scaled_product

pytestmark = pytest.mark.gpu
DEVICE = os.environ.get("MIGM_TEST_DEVICE", "cuda")
ROWS, SIZE = (4264, 4096) if DEVICE == "cuda" else (64, 128)


@pytest.fixture
def operands():
    """Rows, weights and bias of a Lumina-DiMOO block at 1024 px, in bfloat16."""
    if not multiplies_fp8(torch.device(DEVICE)) and DEVICE == "cuda":
        pytest.skip("no CUDA device with products of 8-bit floats here")
    torch.manual_seed(0)
    x, weight = torch.randn(1, ROWS, SIZE), torch.randn(SIZE, SIZE) * SIZE**-0.5
    return (each.to(DEVICE, torch.bfloat16) for each in (x, weight, torch.randn(SIZE)))


def test_the_devices_product_is_that_of_its_twin(operands):
    x, weight, _ = operands
    (values, row_scale), (lower, scale) = Float8Linear.quantised(x[0]), Float8Linear.quantised(weight)
    parts = values, lower, row_scale, scale.t().contiguous()
    try:
        found = scaled_product(*parts).float()
    except RuntimeError as error:
        if DEVICE == "cpu":
            pytest.skip(f"torch._scaled_mm does not run here: {error}")
        raise
    right = dequantised_product(*parts)
    assert (found - right).norm() / right.norm() < 0.003  # bfloat16 results, and sums of fewer bits
    assert (found - right).abs().max() < 0.03 * right.abs().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [0, 1, 13, ROWS])
def test_a_linear_is_near_the_plain_one_at_any_number_of_rows(operands, kind, rows):
    x, weight, bias = operands
    layer = KINDS[kind](weight.cpu(), torch.nn.Parameter(bias.cpu())).to(DEVICE)
    found, right = layer(x[:, :rows]), torch.nn.functional.linear(x[:, :rows], weight, bias)
    assert found.shape == right.shape
    assert found.dtype == torch.bfloat16
    assert (found - right).float().norm() <= 0.05 * right.float().norm()
    some = layer(x[:, :rows], slice(SIZE // 2, SIZE)).float()
    torch.testing.assert_close(some, found[..., SIZE // 2 :].float(), rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize("kind", KINDS)
def test_it_compiles_to_one_graph(operands, kind):
    x, weight, bias = operands
    layer = KINDS[kind](weight, torch.nn.Parameter(bias))
    compiled = torch.compile(layer, fullgraph=True)
    with torch.inference_mode():
        found, right = compiled(x).float(), layer(x).float()
    assert (found - right).norm() / right.norm() < 0.02  # values at the middle of two may round otherwise
