"""Every method runs along true trajectories, and predicts there what it predicts while sampling."""

import pytest
import torch
from families import METHODS, Family, N, tokens_before

from migm.analyses.forcing import Walk, compare
from migm.sampling.sampler import Sampler

CHEAP = [name for name in METHODS if name != "vanilla"]


def walked(family: Family, method: str):
    """Measures of a method along the vanilla run of the family's three images."""
    records = family.vanilla[1]
    order = torch.full_like(records[0].tokens, -1)
    for record in records:
        order.scatter_(1, record.new_positions, record.index)
    walk = Walk([Sampler(family.base, family.sampling, family.accelerator(method))], order)
    for record in records:
        walk.on_step(record)
    return walk.measured()[0]


@pytest.mark.parametrize("method", CHEAP)
def test_full_steps_are_true_and_cheap_ones_are_not(family, method):
    values, since, rows = walked(family, method)
    assert values.shape == (3, N, 5)
    assert values.isfinite().all()
    assert since[:, 0].eq(0).all()
    full = since == 0
    if method == "dllm_cache":  # whose full steps compute the image alone, and the prompt at the first
        full[:, 1:] = False
    exact = torch.tensor([0.0, 0, 0, 1, 0], dtype=values.dtype)
    assert torch.allclose(values[full], exact.expand_as(values[full]), atol=1e-10)
    assert (values[since > 0][:, 0] > 0).all()
    assert (rows[:, 1:] < rows[:, :-1]).all()


@pytest.mark.parametrize("method", [name for name in CHEAP if name != "recap"])  # which ranks by itself while sampling
def test_the_first_cheap_step_is_that_of_sampling(family, method):
    values, since, _ = walked(family, method)
    sampler = Sampler(family.base, family.sampling, family.accelerator(method))
    truth, (_, records) = family.vanilla[1], family.first(sampler.accelerator)
    cheap = [record.index for record in records if not record.is_full]
    first = cheap[0]
    masked = (tokens_before(truth, family.base)[first] == family.base.spec.vocab_size).nonzero()[:, 1].view(3, -1)
    (found,) = compare(sampler, truth[first], [records[first].features], masked)
    assert torch.allclose(values[:, first], found, atol=1e-10)
    assert (since[:, first] <= 1).all()
