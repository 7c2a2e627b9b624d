"""Forecasts of numbers (docs/originals/methods.md, Laws 6, 7): no base but where trajectories have to be real."""

import itertools
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from forecast_formulas import FORMULAS

from migm.accelerators.calibration import Calibration, LearnedWeights
from migm.accelerators.extrapolation import FoCa, Hermite, Newton, Taylor
from migm.accelerators.predictors.forecast import Forecast, histories
from migm.runtime.errors import UserError
from migm.sampling.calibrate import calibrate
from migm.sampling.sampler import Sampler

ANCHORS = (0, 4, 8, 12)
UNEVEN = (0, 3, 4, 9)
RULES = {"taylor": Taylor, "newton": Newton, "hermite": Hermite}


def forecast(rule, path, anchors, step):
    """What the rule makes of the path's values at the anchors, by way of the predictor's own history."""
    history = histories(rule)()
    for time in anchors:
        history.update(time, torch.tensor([path(time)], dtype=torch.float64))
    return float(history.predict(step))


def line(t):
    return 1 + 2.0 * t


def quadratic(t):
    return 1 + 2 * t + 0.5 * t**2


def wave(t):
    return math.sin(0.4 * t) + t**1.5


@pytest.mark.parametrize(
    ("rule", "path", "error"),
    [
        (Taylor(1), quadratic, -10.5),
        (Taylor(2), quadratic, -6.0),
        (Newton(2), quadratic, 0.0),
        (Hermite(1, 0.5), quadratic, -28.5),
        (FoCa(), quadratic, -10.5),
        (Taylor(1), line, 0.0),
        (Hermite(1, 0.5), line, -3.0),
        (FoCa(), line, 0.0),
    ],
)
def test_errors_three_steps_past_the_last_anchor_are_the_measured_ones(rule, path, error):
    assert forecast(rule, path, ANCHORS, 15) - path(15) == pytest.approx(error, abs=1e-12)


def test_focas_published_form_is_wrong_on_lines_where_steps_differ_in_length():
    before, now, slope, full_slope = line(8), line(12), 2.0, 2.0
    for _ in range(3):
        ahead = 4 / 3 * now - before / 3 + 2 / 3 * slope
        before, now = now, now + (full_slope + ahead - now) / 2
        slope = now - before
    assert now - line(15) == pytest.approx(1.75)
    assert forecast(FoCa(fixed_step=True), line, ANCHORS, 15) == pytest.approx(now)
    assert forecast(FoCa(), line, (8, 9), 12) == pytest.approx(line(12))  # with a gap of 1 both are the same


def test_foca_with_steps_of_variable_length_is_taylorseer_of_order_1():
    """What is linear in two values and exact on lines can be nothing else."""
    for times in itertools.combinations(range(7), 2):
        for step in range(times[-1] + 1, times[-1] + 6):
            assert FoCa().weights(times, step) == pytest.approx(Taylor(1).weights(times, step))


@pytest.mark.parametrize("anchors", [ANCHORS, UNEVEN, (0, 1, 2, 6)])
@pytest.mark.parametrize("distance", [1, 2, 5])
class TestAtAnySpacing:
    def test_order_0_is_reuse(self, anchors, distance):
        for rule in (Taylor(0), Newton(0), Hermite(0)):
            assert forecast(rule, quadratic, anchors, anchors[-1] + distance) == quadratic(anchors[-1])

    def test_taylor_and_foca_are_exact_on_lines(self, anchors, distance):
        for rule in (Taylor(1), Taylor(3), FoCa()):
            step = anchors[-1] + distance
            assert forecast(rule, line, anchors, step) == pytest.approx(line(step), abs=1e-9)

    def test_newton_is_exact_on_polynomials_of_its_order_and_not_beyond(self, anchors, distance):
        step = anchors[-1] + distance
        for order in range(4):

            def power(t, order=order):
                return (t - 1.5) ** order

            assert forecast(Newton(order), power, anchors, step) == pytest.approx(power(step), abs=1e-9)
            if order:
                assert forecast(Newton(order - 1), power, anchors, step) != pytest.approx(power(step), abs=1e-3)

    def test_hermite_of_the_square_root_of_a_half_is_taylor_at_order_1(self, anchors, distance):
        step = anchors[-1] + distance
        ours = forecast(Hermite(1, math.sqrt(0.5)), quadratic, anchors, step)
        assert ours == pytest.approx(forecast(Taylor(1), quadratic, anchors, step))
        assert forecast(Hermite(1), line, anchors, step) > line(anchors[-1])  # forwards: not evaluated at -k

    def test_every_rule_is_its_papers_recursion(self, anchors, distance):
        """On a path no rule is exact on, against formulas of the tests' own."""
        step = anchors[-1] + distance
        values = [wave(t) for t in anchors]
        for order in range(4):
            for name, rule in RULES.items():
                wanted = FORMULAS[name](anchors, values, step, order)
                assert forecast(rule(order), wave, anchors, step) == pytest.approx(wanted), (name, order)
        wanted = FORMULAS["foca"](anchors, values, step, 0)
        assert forecast(FoCa(), wave, anchors, step) == pytest.approx(wanted)


@pytest.mark.parametrize("rule", [Taylor(3), Newton(3), Hermite(3), FoCa()])
def test_a_single_anchor_is_reused_and_few_give_a_lower_order(rule):
    assert forecast(rule, quadratic, (4,), 9) == quadratic(4)
    lower = {Taylor: Taylor(1), Newton: Newton(1), Hermite: Hermite(1), FoCa: FoCa()}[type(rule)]
    assert forecast(rule, quadratic, (0, 4), 9) == pytest.approx(forecast(lower, quadratic, (0, 4), 9))


def test_hermites_second_order_is_damped_and_negative_close_by():
    """s^2 (2 s^2 k^2 - 1), so -1/8 at k = 1 and 1/4 at k = 2 of the second difference."""
    for k, coefficient in ((1, -0.125), (2, 0.25), (3, 0.875)):
        second = forecast(Hermite(2), lambda t: t**2, (0, 1, 2), 2 + k) - (4 + 0.5 * k * 3)
        assert second == pytest.approx(coefficient * 2)


# --- L2P: learned weights ---


@pytest.fixture(scope="module")
def vanilla(tiny_base, make_sampling, tmp_path_factory):
    """The file of a calibration on four trajectories of the tiny base, and these trajectories (values, steps)."""
    sampler, steps = Sampler(tiny_base, make_sampling()), []
    path = tmp_path_factory.mktemp("calibration") / "calibration.safetensors"
    calibrate(sampler, lambda images: images % 10, 4, 2, seed=5).save(path)
    watch = SimpleNamespace(on_step=lambda record: steps.append(record.features[0].flatten()))
    images = torch.arange(4)
    sampler.tokens(images % 10, sampler.noise(5, images), [watch])
    return path, torch.stack(steps, 1).numpy()


def learned(path, base, **settings):
    rule = LearnedWeights(path, 6, **settings)
    Forecast(rule).fingerprint(base)
    return rule


@pytest.mark.parametrize("times", [[0], [0, 1], [0, 1, 2], [0, 2, 3], [1, 3]])
def test_learned_weights_are_the_least_squares_solution(vanilla, tiny_base, times):
    path, values = vanilla
    for step in range(times[-1] + 1, 6):
        exact = np.linalg.lstsq(values[:, times], values[:, step], rcond=None)[0]
        np.testing.assert_allclose(learned(path, tiny_base, damping=0).weights(times, step), exact, atol=1e-8)
        assert np.abs(learned(path, tiny_base).weights(times, step) - exact).max() < 0.01


@pytest.mark.parametrize("times", [[0], [0, 1], [0, 1, 2], [0, 2, 3]])
def test_learned_weights_beat_every_fixed_rule_on_the_trajectories_they_were_fitted_on(vanilla, tiny_base, times):
    path, values = vanilla

    def error(weights, step):
        return float(np.square(values[:, times] @ weights - values[:, step]).sum())

    order, reuse = len(times) - 1, np.eye(len(times))[-1]
    for step in range(times[-1] + 1, 6):
        ours = error(learned(path, tiny_base).weights(times, step), step)
        fixed = [rule.weights(times, step) for rule in (Taylor(order), Newton(order), Hermite(order))]
        assert all(ours < error(weights, step) for weights in (reuse, *fixed))


def test_a_calibration_of_something_else_is_refused_by_its_key(vanilla, tiny_base, make_base, tmp_path):
    path, _ = vanilla
    key = "accelerator.predictor.rule.calibration="
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    for file, base, n, message in (
        (tmp_path / "none", tiny_base, 6, "no such file; write it by python -m migm.calibrate"),
        (tmp_path / "broken.safetensors", tiny_base, 6, "is not a file of migm.calibrate"),
        (path, make_base(seed=1), 6, "was calibrated on base"),
        (path, tiny_base, 7, "was calibrated for sampling.num_steps=6, this is 7"),
    ):
        with pytest.raises(UserError, match=re.escape(key) + ".*" + re.escape(message)):
            LearnedWeights(file, n).fingerprint(base)
    again = Calibration.load(path, tiny_base, 6, "key")
    assert again.fingerprint() == learned(path, tiny_base).fingerprint(tiny_base)
