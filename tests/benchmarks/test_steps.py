"""What bench times as parts of a step is what a step of the sampler does."""

import pytest
import torch

from migm.accelerators.predictors.shortcut import Shortcut
from migm.benchmarks.steps import STEPS, step_flops, step_jobs
from migm.evaluation.meter import read_meter
from migm.runtime import compiling
from migm.runtime.compiling import Runtime
from migm.sampling.sampler import Sampler


@pytest.fixture
def made(tiny_base, make_sampling, make_shortcut):
    vanilla = Sampler(tiny_base, make_sampling())
    with torch.inference_mode():
        yield vanilla, step_jobs(vanilla, Shortcut(module=make_shortcut()), torch.arange(3))


def test_a_part_is_the_same_at_every_call(made):
    _, jobs = made
    for part in ("full", "cheap"):
        assert torch.equal(jobs[part]()[0], jobs[part]()[0])
    for part in ("tail", "cheap_and_tail"):
        assert torch.equal(jobs[part]().tokens, jobs[part]().tokens)


def test_the_tail_reveals_the_mean_number_of_tokens_with_half_of_them_masked(made):
    vanilla, jobs = made
    for part in ("tail", "cheap_and_tail"):
        record, mask = jobs[part](), vanilla.base.spec.vocab_size
        assert record.index == 3
        assert record.mask_ratio.tolist() == [0.5] * 3
        assert (record.tokens == mask).sum(1).tolist() == [8 - 16 // 6] * 3
        assert (record.tokens_before(mask) == mask).sum(1).tolist() == [8] * 3


def test_the_cheap_step_with_its_tail_computes_the_features_of_the_cheap_step(made):
    _, jobs = made
    assert torch.equal(jobs["cheap_and_tail"]().features[0], jobs["cheap"]()[0])
    assert torch.equal(jobs["tail"]().features[0], jobs["full"]()[0])
    assert not torch.equal(jobs["cheap"]()[0], jobs["full"]()[0])


def test_every_part_goes_through_the_samplers_runtime(tiny_base, make_sampling, make_shortcut, monkeypatch):
    names = []

    def noted(function):
        def call(*args, **kwargs):
            names.append(function.__name__)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(compiling, "compiled", noted)
    monkeypatch.setattr(compiling, "lacking_compiler", lambda _: "")
    vanilla = Sampler(tiny_base, make_sampling(), runtime=Runtime(True, False))
    with torch.inference_mode():
        jobs = step_jobs(vanilla, Shortcut(module=make_shortcut()), torch.arange(2))
        found = {}
        for part, job in jobs.items():
            names.clear()
            job()
            found[part] = list(names)
    assert found["full"]
    assert set(found["full"]).isdisjoint({"advance", "step", "write"})
    assert found["cheap"] == ["advance"]
    assert found["tail"] == ["step", "write"]
    assert found["cheap_and_tail"] == ["advance", "step", "write"]


def test_flops_of_the_parts_are_those_of_a_run(tiny_base, make_sampling, make_shortcut):
    vanilla, predictor = Sampler(tiny_base, make_sampling()), Shortcut(module=make_shortcut())
    with torch.inference_mode():
        work = step_flops(vanilla, predictor, torch.arange(1))
    assert set(work) == set(STEPS)
    assert work["cheap_and_tail"] == work["cheap"] + work["tail"]
    # The first step's head sees all 16 positions, the tail's half of them.
    assert read_meter(vanilla, torch.ones_like, 1).flops[0] == work["full"] + 2 * work["tail"]
