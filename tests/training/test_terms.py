"""Every term of an objective against a plain formula, in float64 and row by row."""

import pytest
import torch
from tiny_parts import naming
from torch.distributions import Categorical, kl_divergence

from migm.runtime.errors import UserError
from migm.training.objective import Mixture
from migm.training.terms.guided_kl import GuidedKL
from migm.training.terms.marginal import Marginal
from migm.training.terms.squared_error import SquaredError
from migm.training.terms.term import Distributions, PredictedRows, entropy

ZERO = torch.zeros((), dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def seen():
    """Three images of five positions of seven tokens; the second image has two masked ones, the third none."""
    masked = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
    wait = torch.tensor([[0, 3, 1, 0, 2], [5, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    true, predicted = (random(3, 5, 7, seed=i).log_softmax(-1) for i in (1, 2))
    return Distributions(true, predicted, masked, wait)


def value(term, seen):
    return float(term.value(term.sums(seen), seen.masked.sum(1)))


def kl(seen, image, position):
    return float(kl_divergence(*(Categorical(logits=x[image, position]) for x in seen[:2])))


def test_the_guided_kl_is_the_mean_over_masked_rows(seen):
    rows = [kl(seen, i, k) for i, k in seen.masked.nonzero().tolist()]
    assert len(rows) == 7
    assert value(GuidedKL(), seen) == pytest.approx(sum(rows) / 7, rel=1e-12)


@pytest.mark.parametrize("steps_ahead", [1, 2])
@pytest.mark.parametrize("floor", [0.0, 0.25, 3.0])
def test_rows_about_to_be_revealed_count_more_and_an_image_by_its_rows(seen, floor, steps_ahead):
    total = 0.0
    for image, rows in ((0, range(5)), (1, (0, 2))):
        weights = [1.0 if int(seen.wait[image, k]) < steps_ahead else floor for k in rows]
        mean = sum(w * kl(seen, image, k) for w, k in zip(weights, rows, strict=True)) / sum(weights)
        total += len(rows) * mean
    found = value(GuidedKL(floor=floor, steps_ahead=steps_ahead), seen)
    assert found == pytest.approx(total / 7, rel=1e-12)


def test_without_a_row_that_counts_the_guided_kl_is_zero(seen):
    assert value(GuidedKL(floor=0.0), seen._replace(wait=seen.wait + 9)) == 0


@pytest.mark.parametrize("entropy_weight", [0.0, 2.0])
def test_the_marginal_compares_an_image_s_mean_distributions(seen, entropy_weight):
    total = 0.0
    for image, rows in ((0, [0, 1, 2, 3, 4]), (1, [0, 2])):
        true, predicted = (Categorical(probs=x[image, rows].exp().mean(0)) for x in seen[:2])
        wider = float(predicted.entropy() - true.entropy())
        total += len(rows) * (float(kl_divergence(true, predicted)) + entropy_weight * wider**2)
    assert value(Marginal(entropy_weight=entropy_weight), seen) == pytest.approx(total / 7, rel=1e-10)


@pytest.mark.parametrize("term", [GuidedKL(floor=0.3), Marginal()])
def test_a_true_prediction_costs_nothing_and_gradients_are_those_of_differences(seen, term):
    assert value(term, seen._replace(predicted=seen.true)) == pytest.approx(0, abs=1e-12)
    logits = seen.predicted.clone().requires_grad_(True)

    def loss(x):
        at = seen._replace(predicted=x.log_softmax(-1))
        return term.value(term.sums(at), at.masked.sum(1))

    assert torch.autograd.gradcheck(loss, logits)
    loss(logits).backward()
    assert not logits.grad[~seen.masked].any()
    assert logits.grad[seen.masked].any(-1).all()


def test_the_entropy_of_a_certain_distribution_has_a_finite_gradient():
    certain = torch.tensor([1.0, 0.0, 0.0], requires_grad=True)
    assert entropy(certain) == 0
    entropy(certain).backward()
    assert certain.grad.isfinite().all()


@pytest.mark.parametrize("floor", [0.0, 0.2, 1.0])
def test_the_feature_error_gives_other_rows_a_floor(floor):
    predicted, target = random(3, 5, 4), random(3, 5, 4, seed=1)
    rows = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    mse = (predicted - target)[rows].square().mean()
    total = 0.0
    for image in range(2):
        weights = [1.0 if rows[image, k] else floor for k in range(5)]
        errors = [float((predicted - target)[image, k].square().mean()) for k in range(5)]
        mean = sum(w * e for w, e in zip(weights, errors, strict=True)) / sum(weights)
        total += int(rows[image].sum()) * mean
    found = SquaredError(floor=floor).value(PredictedRows(predicted, target, target, rows, mse, base=None))
    assert float(found) == pytest.approx(total / 5, rel=1e-5)  # features are compared in float32


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({}, ["objective.terms=[]", "above 0"]),
        ({"a": SquaredError(0.0), "b": GuidedKL(0.0)}, ["objective.terms=['a', 'b']", "above 0"]),
        ({"feature_mse": SquaredError()}, ["objective.terms.feature_mse", "name the term otherwise"]),
        ({"fidelity_kl": GuidedKL()}, ["objective.terms.fidelity_kl", "name the term otherwise"]),
    ],
)
def test_mixtures_of_nothing_and_names_that_are_taken_are_refused(terms, words):
    with pytest.raises(UserError, match=naming(*words)):
        Mixture(terms)
