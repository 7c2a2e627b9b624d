"""Losses count the masked rows and nothing else."""

import pytest
import torch

from migm.shortcuts.losses import masked_cosine, masked_mse


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    predicted, target = (torch.randn(2, 5, 8, generator=generator) for _ in range(2))
    return predicted, target, torch.tensor([[1, 0, 1, 0, 0], [0, 1, 1, 1, 0]]).bool()


def test_mse_is_the_mean_over_masked_rows(case):
    predicted, target, masked = case
    wanted = (predicted - target)[masked].square().mean()
    torch.testing.assert_close(masked_mse(predicted, target, masked), wanted)


def test_cosine_is_the_mean_over_masked_rows(case):
    predicted, target, masked = case
    wanted = torch.cosine_similarity(predicted[masked], target[masked], dim=-1).mean()
    torch.testing.assert_close(masked_cosine(predicted, target, masked), wanted)


@pytest.mark.parametrize("loss", [masked_mse, masked_cosine])
def test_rows_that_are_not_masked_have_no_influence(case, loss):
    predicted, target, masked = case
    before = loss(predicted, target, masked)
    assert torch.equal(loss(torch.where(masked[..., None], predicted, 7.0), target, masked), before)
    assert not torch.equal(loss(torch.where(masked[..., None], 7.0, predicted), target, masked), before)


@pytest.mark.parametrize("loss", [masked_mse, masked_cosine])
def test_no_masked_row_gives_zero_not_nan(case, loss):
    assert loss(*case[:2], torch.zeros(2, 5, dtype=torch.bool)).item() == 0
