"""Every method of conf/accelerator on both families of bases (docs/originals/methods.md, Laws 5, 6, 8, 11)."""

import functools

import method_checks as checks
import pytest
from families import FILES, METHODS, N, of_another_base

from migm.accelerators.accelerator import Accelerator
from migm.runtime.errors import UserError

LEARNED = [
    *("shortcut", "shortcut_interval", "shortcut_placed", "shortcut_table", "no_cross_attention"),
    *("shortcut_adaptive", "l2p"),
]

# What makes a method leave nothing out.
OFF = {
    "dllm_cache": [
        {"policy.interval": 1, "predictor.prompt_interval": 1},
        {"policy.interval": 3, "predictor.prompt_interval": 1, "predictor.transfer_ratio": 1.0},
        {"policy.interval": 100, "predictor.prompt_interval": 1, "predictor.transfer_ratio": 1.0},
    ],
    "recap": [{"num_full_steps": N}],
    "vanilla": [{}],
    **{name: [{"policy.steps": list(range(N))}] for name in ("shortcut_table", "taylorseer_table")},
    **{
        name: [{"policy.interval": 1}]
        for name in (
            *("foca", "hicache", "newton", "reuse_interval", "shortcut_interval"),
            *("taylorseer", "taylorseer_module"),
        )
    },
    **{
        name: [{"num_full_steps": N}]
        for name in (
            *("foca_uniform", "hicache_uniform", "l2p", "no_cross_attention", "reuse", "shortcut"),
            *("foca_placed", "reuse_placed", "shortcut_placed", "taylorseer_placed", "taylorseer_uniform"),
        )
    },
    **{name: [{"policy.delta": 0.0}] for name in ("shortcut_adaptive", "teacache", "teacache_first_block")},
    **{
        name: [{"predictor.cache_ratio": 0.0}, {"policy.refresh_interval": 1}, {"policy.warmup_ratio": 1.0}]
        for name in ("ml_cache", "ml_cache_w0", "ml_cache_w01")
    },
}

# Other settings than the published ones, for the replays.
VARIANTS = {
    "dllm_cache": [
        {"policy.interval": 4, "predictor.prompt_interval": 3},
        {"predictor.prompt_interval": 2, "predictor.transfer_ratio": 0.5},
        {"predictor.prompt_interval": 3, "predictor.transfer_ratio": 0.0},
    ],
    "recap": [{"predictor.recompute_condition": True}, {"num_full_steps": 4, "policy.u": 2}, {"num_full_steps": 1}],
    "ml_cache": [
        {"predictor.cache_ratio": 0.6},
        {"predictor.cache_ratio": 0.7, "predictor.force_new": True},
        {"predictor.cache_ratio": 0.7, "predictor.image_rows_only": True},
        {"predictor.cache_ratio": 0.9, "predictor.force_new": True, "predictor.image_rows_only": True},
    ],
    "taylorseer": [{"policy.interval": 3, "predictor.rule.max_order": 2}, {"predictor.rule.max_order": 0}],
    "taylorseer_module": [{"policy.interval": 3, "predictor.rule.max_order": 2}, {"predictor.rule.max_order": 0}],
    "newton": [{"policy.interval": 3, "predictor.granularity": "module"}],
    "hicache": [{"policy.interval": 3, "predictor.granularity": "module"}],
    "foca": [{"policy.interval": 3, "policy.first_enhance": 1}, {"predictor.granularity": "module"}],
    "l2p": [{"num_full_steps": 5}, {"predictor.rule.max_order": 0}],
    "teacache": [
        {"policy.delta": 0.15},
        {"policy.delta": 0.2, "predictor.of": "residual"},
        {"policy.calibration": None},
    ],
    "teacache_first_block": [
        {"policy.delta": 0.15},
        {"policy.calibration": None, "policy.coefficients": [2.0, 0.0, 0.1]},
    ],
    "shortcut": [{"num_full_steps": 1}],
    "shortcut_adaptive": [{"policy.delta": 0.15, "policy.indicator": "first_block"}],
    "reuse": [{"num_full_steps": 4, "predictor.of": "residual"}],
}


@pytest.fixture(scope="module")
def made(family):
    """The accelerator of a method as it is configured, one for all tests of this file."""
    return functools.cache(family.accelerator)


every_method = pytest.mark.parametrize("method", METHODS)


def test_every_method_without_weights_of_one_base_is_here():
    assert set(OFF) == set(METHODS) == {f.stem for f in FILES if not of_another_base(f)}
    assert set(VARIANTS) <= set(METHODS)


@pytest.mark.parametrize(("method", "changes"), [(m, c) for m in METHODS for c in OFF[m]])
def test_with_nothing_left_out_it_is_vanilla_at_every_step(family, method, changes):
    checks.is_vanilla(family, family.accelerator(method, **changes))


@pytest.mark.parametrize(("method", "changes"), [(m, c) for m in VARIANTS for c in VARIANTS[m]])
def test_features_with_other_settings_are_those_of_the_method_written_once_more(family, method, changes):
    checks.is_its_replay(family, family.accelerator(method, **changes), [1])


@every_method
def test_features_are_those_of_the_method_written_once_more(family, made, method):
    checks.is_its_replay(family, made(method))


@every_method
def test_full_steps_are_the_bases_own(family, made, method):
    checks.full_steps_are_the_bases(family, made(method))


@every_method
def test_tokens_stay_once_revealed_and_follow_the_schedule(family, made, method):
    checks.tokens_follow_the_schedule(family, made(method))


@every_method
def test_no_state_is_kept_between_generations(family, made, method):
    checks.no_state_is_kept(family, made(method))


@every_method
def test_a_batch_equals_one_by_one(family, made, method):
    checks.batch_is_one_by_one(family, made(method))


@every_method
def test_the_noise_is_left_alone(family, made, method):
    checks.noise_is_left_alone(family, made(method))


@every_method
def test_no_module_is_patched(family, made, method):
    checks.nothing_is_patched(family, made(method))


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("vanilla", *LEARNED)])
def test_unchanged_tokens_keep_their_features(family, made, method):
    checks.unchanged_tokens_keep_their_features(family, made(method))


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("recap", {}),
        ("recap", {"num_full_steps": 1}),
        ("ml_cache_w0", {"predictor.force_new": True}),
        ("dllm_cache", {"predictor.transfer_ratio": 0.3}),
    ],
)
def test_new_tokens_are_exact_in_a_single_layer(family, method, changes):
    checks.new_tokens_are_exact(family, family.accelerator(method, **changes))


@pytest.mark.parametrize("changes", [{}, {"num_full_steps": 1}, {"num_full_steps": 4, "policy.u": 2}])
def test_local_steps_reveal_what_their_full_step_ranked(family, changes):
    checks.targets_are_ranked(family, family.accelerator("recap", **changes))


@every_method
def test_both_guidance_halves_in_one_pass_equal_two(dimoo, make_dimoo, method):
    one_pass = make_dimoo(one_pass=True)
    checks.one_pass_is_two(dimoo, dimoo.accelerator(method), one_pass)


@pytest.mark.parametrize("method", ["reuse", "teacache"])
def test_reusing_the_residual_draws_the_same_tokens_as_reusing_the_features(family, method):
    """Rows that are still masked, where a step draws, have the input they had."""
    runs = [family.run(family.accelerator(method, **{"predictor.of": of})) for of in ("features", "residual")]
    (tokens, records), (others, _) = runs
    assert (tokens == others).all()
    assert not all(record.is_full for record in records)


def test_combinations_that_cannot_work_are_refused_when_they_are_composed(family):
    with pytest.raises(UserError, match=r"accelerator\.predictor\.granularity=module: .* take boundary"):
        family.accelerator("l2p", **{"predictor.granularity": "module"})
    policy, predictor = family.accelerator("teacache").policy, family.accelerator("recap").predictor
    with pytest.raises(UserError, match=r"accelerator\.predictor Target ranks .* accelerator\.policy Accumulate"):
        Accelerator(policy, predictor, "both")
    with pytest.raises(UserError, match=r"accelerator\.predictor is missing"):
        Accelerator(policy, None, "alone")
