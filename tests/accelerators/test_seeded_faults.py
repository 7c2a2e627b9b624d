"""Deliberate mistakes, at least one in every method: each is caught by a check that passes without it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import faults
import method_checks as checks
import pytest
from families import METHODS

REPLAY, VANILLA, FULL = checks.is_its_replay, checks.is_vanilla, checks.full_steps_are_the_bases
KEEP, EXACT, STATE = checks.unchanged_tokens_keep_their_features, checks.new_tokens_are_exact, checks.no_state_is_kept
RANKED, BATCH, SCHEDULE = checks.targets_are_ranked, checks.batch_is_one_by_one, checks.tokens_follow_the_schedule

FOUR_TENTHS = {"predictor.cache_ratio": 0.6}
EVERY_ROW = {"predictor.cache_ratio": 0.0}
EVERY_CHANGE = {"predictor.transfer_ratio": 0.3}
ALL_IN_PARTS = {"policy.interval": 100, "predictor.prompt_interval": 1, "predictor.transfer_ratio": 1.0}
LISTED = {"policy.steps": [0, 1, 4]}
UNEVEN = {"policy.interval": 3, "policy.first_enhance": 1}


class Fault(NamedTuple):
    """A mistake, what it is put in by, and the check that has to see it."""

    method: str
    mistake: str
    patch: faults.Patch
    check: Callable[..., None]
    changes: dict[str, Any] | None = None
    family: str = "dimoo"


FAULTS = [
    Fault("vanilla", "a step sees other tokens than those revealed", faults.other_tokens, FULL),
    Fault("vanilla", "other positions than the revealed ones are left out", faults.wrong_positions_left, SCHEDULE),
    Fault("reuse", "later full steps are not taken in", faults.first_features_for_good, REPLAY),
    Fault("reuse_interval", "later full steps are not taken in", faults.first_features_for_good, REPLAY),
    Fault("reuse_placed", "later full steps are not taken in", faults.first_features_for_good, REPLAY),
    Fault("ml_cache", "keys and values are not written", faults.keys_and_values_unwritten, VANILLA, EVERY_ROW),
    Fault("ml_cache", "rows have their neighbours' positions", faults.rows_moved, VANILLA, EVERY_ROW),
    Fault("ml_cache", "features of computed rows are stale", faults.computed_rows_unwritten, REPLAY, FOUR_TENTHS),
    Fault("ml_cache", "confidence is the full step's", faults.confidence_unwritten, REPLAY, FOUR_TENTHS, "maskgit"),
    Fault("ml_cache", "rows get the biases of others", faults.bias_of_other_rows, REPLAY, None, "maskgit"),
    Fault("ml_cache_w0", "the quantile is off by one", faults.quantile_off_by_one, REPLAY, FOUR_TENTHS),
    Fault("ml_cache_w01", "the most confident rows are computed", faults.most_confident, REPLAY),
    Fault("recap", "all local steps draw at the first targets", faults.same_targets_again, RANKED),
    Fault("recap", "the worst are the targets", faults.worst_targets, RANKED),
    Fault("recap", "the rows beside the targets are computed", faults.target_rows_moved, EXACT),
    Fault("recap", "local steps show the full step's features", faults.local_rows_unwritten, EXACT),
    Fault("recap", "targets keep the keys and values of masks", faults.keys_and_values_unwritten, REPLAY),
    Fault("dllm_cache", "values are written of the chosen rows alone", faults.values_of_chosen_alone, REPLAY),
    Fault("dllm_cache", "keys are not written", faults.keys_unwritten, EXACT, EVERY_CHANGE),
    Fault("dllm_cache", "additions are not written", faults.additions_unwritten, EXACT, EVERY_CHANGE),
    Fault("dllm_cache", "the rows that changed least are chosen", faults.least_changed, EXACT, EVERY_CHANGE),
    Fault("dllm_cache", "the prompt's interval is not looked at", faults.prompt_never_again, VANILLA, ALL_IN_PARTS),
    Fault("dllm_cache", "markers behind the image are forgotten", faults.markers_forgotten, VANILLA, ALL_IN_PARTS),
    Fault("taylorseer", "terms are swapped", faults.terms_reversed, REPLAY, {"predictor.rule.max_order": 2}),
    Fault("taylorseer", "cheap steps are a step too far", faults.a_step_too_far, REPLAY),
    Fault("taylorseer", "generations share their past", faults.shared_by_generations, STATE, UNEVEN),
    Fault("taylorseer_uniform", "cheap steps are a step too far", faults.a_step_too_far, REPLAY),
    Fault("taylorseer_placed", "cheap steps are a step too far", faults.a_step_too_far, REPLAY),
    Fault("taylorseer_table", "cheap steps are a step too far", faults.a_step_too_far, REPLAY, LISTED),
    Fault("taylorseer_module", "attention stands for the feed-forward", faults.attention_for_feed_forward, REPLAY),
    Fault("taylorseer_module", "its full steps have another input", faults.another_input, FULL),
    Fault("newton", "differences are TaylorSeer's", faults.taylors_differences, REPLAY),
    Fault("hicache", "polynomials are evaluated backwards", faults.backwards, REPLAY),
    Fault("hicache_uniform", "polynomials are evaluated backwards", faults.backwards, REPLAY),
    Fault("foca_uniform", "the window stands still", faults.window_stands_still, REPLAY),
    Fault("foca_placed", "the window stands still", faults.window_stands_still, REPLAY),
    Fault("foca", "full steps of any distance are taken for neighbours", faults.fixed_step, REPLAY, UNEVEN),
    Fault("foca", "the window stands still", faults.window_stands_still, REPLAY),
    Fault("l2p", "weights are the next step's", faults.next_steps_weights, REPLAY),
    Fault("l2p", "weights are in the wrong order", faults.weights_reversed, REPLAY),
    Fault("teacache", "the sum is not reset", faults.sum_not_reset, REPLAY),
    Fault("teacache", "the residual is of no input", faults.residual_of_no_input, KEEP, {"predictor.of": "residual"}),
    Fault("teacache", "the first image decides for all", faults.first_image_decides, BATCH),
    Fault("teacache_first_block", "full steps skip the first block", faults.first_block_skipped, FULL),
    Fault("teacache_first_block", "changes are halved", faults.change_of_half, REPLAY),
    Fault("shortcut", "every cheap step starts from the full one", faults.not_chained, REPLAY),
    Fault("shortcut", "new tokens are a position further", faults.positions_moved, REPLAY),
    Fault("no_cross_attention", "the mask ratio is the last step's", faults.late_mask_ratio, REPLAY),
    Fault("shortcut_interval", "every cheap step starts from the full one", faults.not_chained, REPLAY),
    Fault("shortcut_placed", "every cheap step starts from the full one", faults.not_chained, REPLAY),
    Fault("shortcut_table", "every cheap step starts from the full one", faults.not_chained, REPLAY, LISTED),
    Fault("shortcut_adaptive", "the sum is not reset", faults.sum_not_reset, REPLAY),
]


def test_every_method_has_a_fault():
    assert {fault.method for fault in FAULTS} == set(METHODS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.method}: {fault.mistake}")
def test_a_mistake_is_caught_by_a_check_that_passes_without_it(request, monkeypatch, fault):
    family = request.getfixturevalue(fault.family)
    assert family.vanilla  # drawn before anything is wrong
    fault.check(family, family.accelerator(fault.method, **(fault.changes or {})))
    fault.patch(monkeypatch)
    with pytest.raises(AssertionError):
        fault.check(family, family.accelerator(fault.method, **(fault.changes or {})))
