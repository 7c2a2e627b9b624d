"""On a pretended CUDA device every path gives what it gives on the CPU, and nothing meets on two devices."""

import device_checks as checks
import pytest
import torch
from pretend_cuda import pretended

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.refresh import Always


def test_the_base_is_where_it_was_asked_for(make_place, kind):
    with pretended():
        base = make_place(kind, "cuda").base
        tensors = [*base.transformer.parameters(), *base.tokenizer.parameters()]
        assert {x.device.type for x in tensors} == {"cuda"}
        assert base.fingerprint() == make_place(kind, "cpu").base.fingerprint()


def test_tokens_and_images(same):
    same(checks.drawn, Accelerator(Always()))


def test_in_painting(same):
    same(checks.painted)


def test_photos_of_the_cpu_become_tokens(same):
    same(checks.tokenized)


@pytest.mark.parametrize("kept", checks.KEPT)
def test_stored_trajectories_and_the_pairs_out_of_them(same, kept):
    same(checks.stored, kept)


@pytest.mark.parametrize("objective", checks.names("objective"))
def test_training_by_every_objective(same, objective):
    same(checks.trained, objective)


@pytest.mark.parametrize("optimizer", checks.names("optimizer"))
def test_training_by_every_optimizer(same, monkeypatch, optimizer):
    monkeypatch.setattr("migm.training.optimizer.pick_dtype", lambda *_: torch.float32)  # Muon's own, by the device
    same(checks.trained, "mse", optimizer)


def test_what_bench_times(same):
    same(checks.benched)


def test_what_methods_are_fitted_to(same):
    same(checks.fitted)
