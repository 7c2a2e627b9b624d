"""Samplers that take turns: medians over rounds, what fits into a limit, the images of each."""

from types import SimpleNamespace

import pytest
import torch
from rich.progress import Progress

from migm.evaluation import turns
from migm.evaluation.turns import Lane, Listed, Pace, Wanted, lanes, rounds
from migm.sampling.sampler import Sampler


def lane(*seconds: float) -> Lane:
    return Lane(SimpleNamespace(), SimpleNamespace(), seconds=list(seconds))


def test_a_speed_up_is_the_median_of_the_ratios_of_each_round():
    slow_in_the_middle = lane(4.0, 40.0, 4.0)
    assert lane(1.0, 10.0, 2.0).times(slow_in_the_middle) == 4.0
    assert slow_in_the_middle.times(slow_in_the_middle) == 1.0
    assert slow_in_the_middle.median == 4.0


def test_inputs_come_in_turn():
    assert Listed([3, 7])(torch.arange(3)).tolist() == [3, 7, 3]
    assert Listed(["a", "b c"])(torch.arange(3)) == ["a", "b c", "a"]


def test_rounds_that_would_end_too_late_do_not_fit_and_what_has_begun_does(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(turns.time, "monotonic", lambda: now[0])
    pace = Pace(Progress(disable=True), 10, round_cost=50.0, max_seconds=36.0)
    assert pace.fitting() == 10
    now[0] += 10
    pace.reach(50.0)
    assert pace.fitting() == 3
    now[0] += 30
    pace.reach(60.0)  # slower than it looked
    assert pace.fitting() == 2


@pytest.fixture
def samplers(tiny_base, make_sampling, make_accelerator) -> list[Sampler]:
    return [Sampler(tiny_base, make_sampling(), make_accelerator(name)) for name in ("vanilla", "reuse")]


def test_every_sampler_makes_the_images_of_the_wanted_numbers_and_no_warm_up_is_timed(samplers):
    wanted = [Wanted(3, 5), Wanted(1, 5), Wanted(3, 6)]
    with Progress(disable=True) as bar:
        compared = lanes(samplers, wanted)
        assert [lane.seconds for lane in compared] == [[], []]
        assert list(rounds(compared, wanted, 2, 9, bar)) == [2, 3]
        assert bar.tasks[0].completed == pytest.approx(bar.tasks[0].total)
    for lane, sampler in zip(compared, samplers, strict=True):
        assert len(lane.seconds) == 2
        for image, each in zip(lane.images, wanted, strict=True):
            alone = sampler.images(torch.tensor([each.shown]), 9, torch.tensor([each.number]))
            assert torch.equal(image, alone[0])
    assert compared[0].cost.ffe == 6
    assert 2 < compared[1].cost.ffe < 3


def test_the_first_round_is_made_however_short_the_time(samplers):
    with Progress(disable=True) as bar:
        wanted = [Wanted(label, 0) for label in range(4)]
        compared = lanes(samplers, wanted)
        assert list(rounds(compared, wanted, 1, 0, bar, max_seconds=1e-9)) == [1]
    assert [len(lane.images) for lane in compared] == [1, 1]
