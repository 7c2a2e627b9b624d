"""Deliberate mistakes, one line of a method each, as patches that a test puts in and pytest takes out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import N

from migm.accelerators import calibration, extrapolation, order, runners, runs, teacache
from migm.accelerators.predictors import dllm_cache, forecast, ml_cache, recap, reuse, shortcut
from migm.bases import llada
from migm.bases.layers import run_blocks
from migm.sampling import loop

Patch = Callable[[pytest.MonkeyPatch], None]
SPAN = 19  # rows from the first image token of the tiny DiMOO to the last


def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> Patch:
    """Put `make(original)` in the place of an attribute."""
    return lambda monkeypatch: monkeypatch.setattr(owner, name, make(getattr(owner, name)))


def result(owner: Any, name: str, change: Callable[..., Any]) -> Patch:
    """`change` of what it returns."""
    return replace(owner, name, lambda f: lambda *args, **kwargs: change(f(*args, **kwargs)))


def arguments(owner: Any, name: str, change: Callable[..., tuple[Any, ...]]) -> Patch:
    """`change` of a method's positional arguments but itself."""
    return replace(owner, name, lambda f: lambda self, *args: f(self, *change(*args)))


def unwritten(module: Any, where: Callable[[Any, Any], bool]) -> Patch:
    """Writes of rows that do not happen."""

    def make(put: Any) -> Any:
        return lambda stored, rows, new, keep=None: None if where(stored, rows) else put(stored, rows, new, keep)

    return replace(module, "put", make)


# --- vanilla ---
other_tokens = arguments(runs.PlannedRun, "features", lambda i, t, new, now: (i, t.scatter(1, new, 0), new, now))
wrong_positions_left = replace(loop, "split", lambda f: lambda chosen, at, n: (*f(chosen, at, n)[:2], at[:, n:]))


# --- reuse, TeaCache, the shortcut ---
def _first_only(original: Any) -> Any:
    return lambda self, step, features: original(self, step, features) if step == 0 else None


def _bare(self: Any, step: int) -> Any:
    def run(blocks: Any, x: Any, ctx: Any) -> Any:
        self.residual = run_blocks(blocks, x, ctx)
        return self.residual

    return run


def _never_reset(original: Any) -> Any:
    def full(self: Any, step: int, tokens: Any, moment: Any) -> list[bool]:
        now = original(self, step, tokens, moment)
        self.sum = self.sum.masked_fill(torch.tensor(now), self.delta / 2)
        return now

    return full


def _unchained(original: Any) -> Any:
    def predict(self: Any, *args: Any) -> Any:
        start, found = self.features, original(self, *args)
        self.features = start
        return found

    return predict


first_features_for_good = replace(reuse._Held, "update", _first_only)
residual_of_no_input = replace(reuse._Residual, "runner", lambda f: _bare)
sum_not_reset = replace(teacache._Sum, "full", _never_reset)
first_image_decides = result(teacache._Sum, "full", lambda now: now[:1] * len(now))
first_block_skipped = replace(teacache._Done, "__call__", lambda f: lambda self, x, ctx: x)
change_of_half = result(teacache, "relative_change", lambda change: change / 2)
not_chained = replace(shortcut._Advance, "predict", _unchained)
positions_moved = arguments(shortcut._Advance, "predict", lambda i, t, new, now: (i, t.roll(1, 1), (new + 1) % 16, now))


def _later(now: Any, count: int) -> Any:
    return now._replace(mask_ratio=now.mask_ratio + count / 16)


late_mask_ratio = arguments(
    shortcut._Advance,
    "predict",
    lambda i, t, new, now: (i, t, new, _later(now, new.shape[1])),
)


# --- ML-Cache and ReCAP ---
def _first_again(self: Any, step: int, masked: Any, count: int) -> Any:
    return masked if self.plan[step] else self.ranked[:, :count].sort(dim=1).values


keys_and_values_unwritten = unwritten(runners, lambda stored, rows: stored.dim() == 4)
rows_moved = arguments(llada.Context, "at", lambda rows: (rows if rows is None else (rows + 1) % int(rows.max() + 1),))
computed_rows_unwritten = unwritten(runners, lambda stored, rows: stored.dim() == 3)
confidence_unwritten = unwritten(ml_cache, lambda stored, rows: stored.dim() == 2)
bias_of_other_rows = replace(ml_cache._Partial, "_confidence", lambda f: lambda self, x, rows=None: f(self, x))
quantile_off_by_one = result(ml_cache, "num_rows", lambda n: n + 1)
most_confident = result(ml_cache._Partial, "_confidence", lambda confidence: -confidence)
same_targets_again = replace(order.RankedSets, "candidates", lambda f: _first_again)
worst_targets = arguments(order.RankedSets, "scored", lambda i, scores, at, chosen: (i, -scores, at, chosen))
target_rows_moved = arguments(recap._Local, "target", lambda positions: ((positions + 1) % 16,))
local_rows_unwritten = computed_rows_unwritten


# --- dLLM-Cache ---
def _no_interval(original: Any) -> Any:
    def predict(self: Any, *args: Any) -> Any:
        self.prompt_interval = 1000
        return original(self, *args)

    return predict


values_of_chosen_alone = unwritten(runners, lambda stored, rows: stored.dim() == 4 and rows.shape[1] == SPAN)
keys_unwritten = unwritten(runners, lambda stored, rows: stored.dim() == 4 and rows.shape[1] < SPAN)
additions_unwritten = unwritten(runners, lambda stored, rows: stored.dim() == 3)
least_changed = result(runners, "cosine_similarity", lambda alike: -alike)
prompt_never_again = replace(dllm_cache._Segments, "predict", _no_interval)
markers_forgotten = result(dllm_cache, "other_rows", lambda rows: torch.arange(rows.shape[1]).expand_as(rows))


# --- forecasters ---
def _fixed_step(original: Any) -> Any:
    def weights(self: Any, times: Any, step: int) -> Any:
        return original(self, [times[-1] - 1, times[-1]][-len(times) :], step)

    return weights


def _shared(original: Any) -> Any:
    known: dict[Any, Any] = {}

    def start(self: Any, base: Any, branch: Any) -> Any:
        key = (branch.condition.shape, int(branch.condition.sum()))
        return known.setdefault(key, original(self, base, branch))

    return start


def _swapped(self: Any, step: int, x: Any) -> Any:
    return x + sum(2 * attn.predict(step) for attn, _ in self.layers)


def _other_input(original: Any) -> Any:
    return lambda self, step: lambda blocks, x, ctx: original(self, step)(blocks, x * 1.01, ctx)


terms_reversed = result(extrapolation, "differences", lambda found: found[:1] + found[1:][::-1])
a_step_too_far = arguments(extrapolation.Taylor, "weights", lambda times, step: (times, step + 1))
taylors_differences = replace(extrapolation, "differences", lambda f: lambda times, span=None: f(times, 1))
backwards = arguments(extrapolation.Hermite, "weights", lambda times, step: (times, 2 * times[-1] - step))
fixed_step = replace(extrapolation.FoCa, "weights", _fixed_step)
window_stands_still = replace(
    forecast.History, "update", lambda f: lambda self, i, value: f(self, i, value) if len(self.steps) < 2 else None
)
next_steps_weights = arguments(calibration.LearnedWeights, "weights", lambda times, step: (times, min(step + 1, N - 1)))
weights_reversed = result(calibration.LearnedWeights, "weights", lambda weights: weights[::-1].copy())
attention_for_feed_forward = replace(runners.Deltas, "predict", lambda f: _swapped)
another_input = replace(runners.Deltas, "run", _other_input)
shared_by_generations = replace(forecast.Forecast, "start", _shared)
