"""The divergence of token distributions where positions share a row of the features."""

import pytest
import torch
from meissonic_parts import meissonic_base

from migm.bases.base import image_rows
from migm.training.terms.term import PredictedRows
from migm.training.terms.token_kl import TokenKL

ZERO = torch.zeros(())


@pytest.fixture(scope="module")
def base():
    return meissonic_base()


def divergence(student, teacher):
    """KL(teacher || student) of every row of logits."""
    ours, theirs = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    return (theirs.exp() * (theirs - ours)).sum(-1)


def test_masked_positions_are_judged_by_the_logits_of_their_own_place(base):
    branch = base.branch(base.text.ids(["a cat", "a dog"]))
    features = [torch.randn(2, 19, 32, generator=torch.Generator().manual_seed(i)).double() for i in range(2)]
    masked = torch.rand(2, 48, generator=torch.Generator().manual_seed(2)) < 0.5
    every = torch.arange(48).expand(2, -1)
    rows = [image_rows(x, branch) for x in features]
    found = TokenKL().value(PredictedRows(rows[0], rows[1], rows[1], masked, ZERO, base))
    wanted = divergence(*(base.head(x, every) for x in rows))[masked].mean()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    mean = divergence(*(base.head(x) for x in rows)).mean(-1)[masked].mean()
    assert abs(float(found - mean)) > 1e-4


def test_of_all_rows_each_counts_by_the_mean_of_its_places(base):
    features = [torch.randn(2, 19, 32, generator=torch.Generator().manual_seed(i)).double() for i in range(2)]
    every = torch.ones(2, 19, dtype=torch.bool)
    found = TokenKL().value(PredictedRows(features[0], features[1], features[1], every, ZERO, base, whole=True))
    torch.testing.assert_close(found, divergence(*map(base.head, features)).mean(), rtol=1e-5, atol=1e-6)
