"""Speed-ups against what FFE promises, and prompts of new lengths."""

import pytest

from migm.accelerators.predictors.reuse import Reuse
from migm.benchmarks.runs import fewest, gain, new_lengths, run_job, waiting
from migm.benchmarks.timing import Timed
from migm.evaluation.cost import costs
from migm.sampling.sampler import Sampler


@pytest.fixture
def make(tiny_base, make_sampling, make_accelerator):
    return lambda name, b=2: Sampler(tiny_base, make_sampling(), make_accelerator(name, b))


def timed(*rounds):
    return Timed(rounds, 5.0, 9.0)


def test_the_gain_is_measured_against_vanilla_of_the_same_n(make):
    sampler = make("reuse")
    cost = costs([sampler], lambda images: images % 10)[0]
    row = gain(sampler, cost, timed(1.0, 2.0, 1.0), {6: timed(2.0, 4.0, 2.0), 3: timed(9.0, 9.0, 9.0)})
    assert row["speedup"] == 2
    assert row["vanilla_from"] == "vanilla 6"
    assert row["ffe_speedup"] == 6 / cost.ffe
    assert row["of_ffe"] == pytest.approx(2 / (6 / cost.ffe))


def test_where_no_vanilla_run_has_this_n_the_nearest_is_scaled_and_said(make):
    sampler = make("reuse")
    cost = costs([sampler], lambda images: images % 10)[0]
    row = gain(sampler, cost, timed(1.0), {4: timed(2.0), 1: timed(2.0)})
    assert row["speedup"] == 3
    assert row["vanilla_from"] == "vanilla 4 times 1.5"
    assert "speedup" not in gain(sampler, cost, timed(1.0), {})
    assert gain(make("vanilla"), cost, timed(1.0), {6: timed(1.0)}) == {"ffe": cost.ffe}


def test_warm_up_is_in_no_quoted_time():
    assert waiting(timed(1.0, 3.0, 2.0), 4) == {"first_s": 5.0, "warm_up_s": 9.0, "later_s": 2.0, "runs_before": 4}


def test_a_replayed_run_is_warmed_up_until_it_is_captured(make, monkeypatch):
    sampler = make("reuse")
    inputs = list(range(2))
    assert run_job(sampler, inputs).warm_ups == 1
    monkeypatch.setattr(Sampler, "replays", property(lambda self: True))
    assert run_job(sampler, inputs).warm_ups == 2


def test_the_shortcut_with_the_fewest_full_steps_stands_for_a_variant(make):
    samplers = [make("vanilla"), make("reuse", 1), make("shortcut", 3), make("shortcut", 2)]
    assert fewest(samplers) is samplers[3]
    assert isinstance(fewest(samplers[:2]).accelerator.predictor, Reuse)


@pytest.mark.parametrize("words", [1, 5, 87])
def test_every_variant_gets_prompt_lengths_of_its_own(words):
    prompts = [" ".join(f"w{i}" for i in range(words)), "short one"]
    longest = max(words, 2)
    shares = [new_lengths(prompts, share, 3, 4) for share in range(3)]
    lengths = [len(each[0].split()) for share in shares for each in share]
    assert len(set(lengths)) == 12
    assert longest not in lengths
    assert all(len(prompt.split()) == len(each[0].split()) for share in shares for each in share for prompt in each)
