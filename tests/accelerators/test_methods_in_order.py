"""Methods where positions are revealed in Halton's order, which begins elsewhere for every image."""

import dataclasses

import method_checks as checks
import pytest
import torch
from families import Family, N

from migm.sampling.order import Halton

METHODS = [
    "dllm_cache",
    "ml_cache",
    "reuse",
    "shortcut",
    "shortcut_adaptive",
    "taylorseer_module",
    "teacache",
    "vanilla",
]


@pytest.fixture(scope="module")
def in_order(family: Family) -> Family:
    return dataclasses.replace(family, sampling=dataclasses.replace(family.sampling, order=Halton(roll=True)), runs={})


@pytest.mark.parametrize("method", METHODS)
def test_laws_of_the_loop_hold_and_positions_depend_on_no_method(in_order, method):
    # The families' calibrations are of their own order.
    fitted = method in ("shortcut_adaptive", "teacache")
    accelerator = in_order.accelerator(method, **({"policy__sampling": "any"} if fitted else {}))
    checks.tokens_follow_the_schedule(in_order, accelerator)
    checks.batch_is_one_by_one(in_order, accelerator)
    for ours, vanilla in zip(in_order.first(accelerator)[1], in_order.vanilla[1], strict=True):
        assert torch.equal(ours.new_positions, vanilla.new_positions)


@pytest.mark.parametrize("method", ["reuse", "shortcut", "taylorseer_uniform"])
def test_with_a_full_pass_at_every_step_they_are_vanilla(in_order, method):
    checks.is_vanilla(in_order, in_order.accelerator(method, num_full_steps=N))
