"""Draws: their frequencies are the softmax's, and their log-probabilities are right."""

import math

import pytest
import torch
from scipy import stats

from migm.sampling.draw import DTYPES, Annealed, Argmax, ExponentialRace, GumbelMax, InverseCDF, log_probability
from migm.sampling.noise import DRAW, KeyedNoise, to_gumbel

DRAWS = [InverseCDF, GumbelMax, ExponentialRace]


class Fixed:
    """Noise that is everywhere the Gumbel or uniform value of one uniform."""

    def __init__(self, value):
        self.value = value

    def uniform(self, purpose, step, positions, width=None):
        shape = positions.shape if width is None else (*positions.shape, width)
        return torch.full(shape, self.value, dtype=torch.float64)

    def gumbel(self, purpose, step, positions, width=None, dtype=torch.float64):
        return to_gumbel(self.uniform(purpose, step, positions, width), dtype)


def some_logits(*shape, spread=2.0):
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def grid(b, k):
    return torch.arange(k).expand(b, -1)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("inverse_temperature", [1.0, 1.3, 0.25])
def test_frequencies_are_those_of_the_softmax(draw, dtype, inverse_temperature):
    logits = some_logits(24, spread=1.5)
    b, k = 20, 1000
    noise = KeyedNoise(11, torch.arange(b))
    tokens, _ = draw(inverse_temperature, dtype)(logits.expand(b, k, 24), noise, 3, grid(b, k))
    seen = tokens.flatten().bincount(minlength=24)
    expected = (logits.double() * inverse_temperature).softmax(-1) * b * k
    assert stats.chisquare(seen.numpy(), expected.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inverse_temperature", [1.0, 1.3])
def test_the_returned_log_probability_is_that_of_the_drawn_token(draw, dtype, inverse_temperature):
    logits = some_logits(2, 50, 24)
    tokens, log_prob = draw(inverse_temperature, dtype)(logits, KeyedNoise(0, torch.arange(2)), 0, grid(2, 50))
    assert tokens.dtype == torch.int64
    assert tokens.shape == log_prob.shape == (2, 50)
    assert log_prob.dtype == DTYPES[dtype]
    exact = (logits.double() * inverse_temperature).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    tolerance = {"bfloat16": 0.05, "float32": 1e-5, "float64": 1e-6}[dtype]
    torch.testing.assert_close(log_prob.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("draw", DRAWS)
def test_a_draw_depends_on_its_own_logits_and_noise_alone(draw):
    logits = some_logits(2, 6, 24)
    noise = KeyedNoise(0, torch.tensor([8, 5]))
    tokens, log_prob = draw()(logits, noise, 4, grid(2, 6))
    pick = torch.tensor([[1, 4]])
    one_token, one_log_prob = draw()(logits[1:, [1, 4]], KeyedNoise(0, torch.tensor([5])), 4, pick)
    assert torch.equal(one_token[0], tokens[1, [1, 4]])
    torch.testing.assert_close(one_log_prob[0], log_prob[1, [1, 4]])
    others = torch.stack([draw()(logits, noise, step, grid(2, 6))[0] for step in range(8)])
    assert len(others.unique(dim=0)) > 4


def test_inverse_cdf_takes_tokens_in_order_of_the_uniform():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()[None, None]
    wanted = {0.05: 0, 0.15: 1, 0.29: 1, 0.31: 2, 0.59: 2, 0.61: 3, 0.99: 3}
    for value, token in wanted.items():
        assert InverseCDF()(logits, Fixed(value), 0, grid(1, 1))[0].item() == token


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("other", [float("-inf"), -1e4])
@pytest.mark.parametrize("uniform", [2.0**-53, 0.5, 1 - 2.0**-53])
def test_a_token_without_probability_is_never_drawn(draw, dtype, other, uniform):
    for hot in (0, 3, 23):
        logits = torch.full((1, 2, 24), other)
        logits[..., hot] = 0
        tokens, log_prob = draw(dtype=dtype)(logits, Fixed(uniform), 0, grid(1, 2))
        assert tokens.tolist() == [[hot, hot]]
        assert log_prob.tolist() == [[0, 0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_gumbel_max_is_the_largest_sum_of_logits_and_noise_in_its_dtype(dtype):
    logits, noise = some_logits(2, 50, 24), KeyedNoise(4, torch.arange(2))
    tokens, _ = GumbelMax(1.3, dtype)(logits, noise, 5, grid(2, 50))
    precise = logits.to(DTYPES[dtype])
    sums = precise * 1.3 + noise.gumbel(DRAW, 5, grid(2, 50), 24, DTYPES[dtype])
    assert sums.dtype == DTYPES[dtype]
    assert torch.equal(tokens, sums.argmax(-1))


def test_a_bfloat16_draw_is_as_sharp_as_with_torchs_own_bfloat16_uniforms():
    """-log p of the drawn tokens is some 1.7 too low at this spread (docs/originals/dimoo.md, Gumbel noise)."""
    logits = some_logits(1, 200, 8192, spread=2.0)
    log_p = logits.log_softmax(-1)

    def loss(tokens):
        return -log_p.gather(-1, tokens[..., None]).mean().item()

    noise = KeyedNoise(0, torch.arange(1))
    ours = {dtype: loss(GumbelMax(dtype=dtype)(logits, noise, 0, grid(1, 200))[0]) for dtype in DTYPES}
    uniform = torch.rand(1, 200, 8192, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(1))
    original = logits.bfloat16() - torch.log(-torch.log(uniform + 1e-20) + 1e-20)
    assert ours["bfloat16"] == pytest.approx(loss(original.argmax(-1)), abs=0.4)
    entropy = -(log_p.exp() * log_p).sum(-1).mean().item()
    assert ours["float32"] == pytest.approx(entropy, abs=0.4)
    assert ours["float64"] == pytest.approx(entropy, abs=0.4)
    assert ours["bfloat16"] < entropy - 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_plain_confidence_leaves_the_temperature_out_and_the_draw_alone(dtype):
    logits, noise = some_logits(2, 50, 24), KeyedNoise(0, torch.arange(2))
    tokens, tempered = GumbelMax(0.5, dtype)(logits, noise, 0, grid(2, 50))
    same, plain = GumbelMax(0.5, dtype, plain_confidence=True)(logits, noise, 0, grid(2, 50))
    assert torch.equal(tokens, same)
    exact = logits.double().log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(plain.double(), exact, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain, tempered, atol=0.1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_argmax_takes_the_likeliest_token_without_noise(dtype):
    logits = some_logits(2, 50, 24)
    tokens, log_prob = Argmax(dtype)(logits, None, 0, grid(2, 50))
    assert torch.equal(tokens, logits.to(DTYPES[dtype]).argmax(-1))
    assert log_prob.dtype == DTYPES[dtype]
    exact = logits.double().log_softmax(-1).amax(-1)
    tolerance = {"bfloat16": 0.05, "float32": 1e-5, "float64": 1e-6}[dtype]
    torch.testing.assert_close(log_prob.double(), exact, rtol=tolerance, atol=tolerance)


def test_confidences_end_at_1e_20():
    """What lies below counts as 1e-20 in the original DiMOO code, so that no score is infinite."""
    logits = torch.tensor([[[0.0, -200.0]]], dtype=torch.float64)
    assert log_probability(logits, torch.tensor([[1]])).item() == pytest.approx(math.log(1e-20))


@pytest.mark.parametrize("inverse_temperature", [1.0, 1.3])
def test_a_race_is_won_by_the_token_with_the_largest_gumbel_value(inverse_temperature):
    logits, noise = some_logits(2, 200, 24).double(), KeyedNoise(0, torch.arange(2))
    race, gumbel = (
        kind(inverse_temperature, "float64")(logits, noise, 1, grid(2, 200)) for kind in (ExponentialRace, GumbelMax)
    )
    assert torch.equal(race[0], gumbel[0])
    torch.testing.assert_close(race[1], gumbel[1])


def test_the_first_of_equal_ratios_wins_a_race():
    logits = torch.tensor([1.0, 1.001, 1.0]).expand(1, 1, 3)  # one number in bfloat16
    assert ExponentialRace(dtype="bfloat16")(logits, Fixed(0.3), 0, grid(1, 1))[0].item() == 0
    assert ExponentialRace(dtype="float32")(logits, Fixed(0.3), 0, grid(1, 1))[0].item() == 1


def test_an_annealed_draw_is_another_rule_at_the_inverse_temperature_of_its_step():
    logits, noise, where = some_logits(2, 6, 24), KeyedNoise(0, torch.arange(2)), grid(2, 6)
    draw = Annealed(InverseCDF(), first=1.0, last=1.4, power=2.0, warm_up=1)
    wanted = [0.5, 1.2**2, 1.4**2]
    assert draw.inverse_temperatures(3).tolist() == pytest.approx(wanted)
    for step, factor in enumerate(wanted):
        tokens, log_prob = draw(logits, noise, step, where, 3)
        other, its_log_prob = InverseCDF(factor)(logits, noise, step, where)
        assert torch.equal(tokens, other)
        torch.testing.assert_close(log_prob, its_log_prob)
    rows = draw(logits, noise, torch.tensor([[2], [0]]), where, 3)[0]  # at steps of their own, as in roll-outs
    assert torch.equal(rows[0], draw(logits, noise, 2, where, 3)[0][0])
    assert torch.equal(rows[1], draw(logits, noise, 0, where, 3)[0][1])


@pytest.mark.parametrize("draw", [*DRAWS, Argmax])
@pytest.mark.parametrize("top_k", [1, 3, 24, 99])
def test_top_k_draws_among_the_likeliest_and_knows_their_probability(draw, top_k):
    logits, noise = some_logits(4, 50, 24), KeyedNoise(0, torch.arange(4))
    tokens, log_prob = Annealed(draw(), top_k=top_k)(logits, noise, 0, grid(4, 50), 1)
    best = logits.topk(min(top_k, 24)).indices
    assert (tokens[..., None] == best).any(-1).all()
    kept = torch.full_like(logits, -torch.inf).scatter(-1, best, logits.gather(-1, best))
    torch.testing.assert_close(log_prob, kept.log_softmax(-1).gather(-1, tokens[..., None])[..., 0])
    if top_k == 3 and draw is not Argmax:
        assert all((tokens == best[..., j]).any() for j in range(3))


def test_an_annealed_draw_that_changes_nothing_is_the_rule_itself():
    logits, noise = some_logits(2, 6, 24), KeyedNoise(0, torch.arange(2))
    for ours, its in zip(
        Annealed()(logits, noise, 1, grid(2, 6), 2), InverseCDF()(logits, noise, 1, grid(2, 6)), strict=True
    ):
        assert torch.equal(ours, its)
