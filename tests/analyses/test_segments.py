"""Segment errors are those that the fidelity analysis gives for the same full steps."""

import pytest
import torch
from tiny_parts import naming

import migm.analyses.segments as module
from migm.accelerators.accelerator import Accelerator
from migm.accelerators.extrapolation import Taylor
from migm.accelerators.predictors.forecast import Forecast
from migm.accelerators.predictors.reuse import Reuse
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Always, Table
from migm.analyses.forcing import Walk, compare
from migm.analyses.segments import SEGMENT_ERRORS, Segment, SegmentWalk, memory_of, refuse_layers, segments
from migm.runtime.errors import UserError
from migm.sampling.guidance import Constant
from migm.sampling.sampler import Sampler
from migm.shortcuts.history import HistoryShortcut

N = 6


@pytest.fixture
def predictor(make_shortcut):
    """The predictor of a name."""
    known = {
        "reuse": Reuse,
        "shortcut": lambda: Shortcut(module=make_shortcut()),
        "history": lambda: Shortcut(module=HistoryShortcut(48, num_heads=2)),
        "taylorseer": lambda: Forecast(Taylor(1)),
        "order 2": lambda: Forecast(Taylor(2)),
    }
    return lambda name: known[name]()


@pytest.fixture
def sampler(tiny_base, make_sampling, predictor):
    return lambda name, plan=None: Sampler(
        tiny_base, make_sampling(guidance=Constant(1.5)), Accelerator(plan or Always(), predictor(name), name)
    )


def walked(point, walk, images=(0, 1, 2)):
    """Let an observer see the vanilla trajectory of some images -> its records."""
    numbers, records = torch.tensor(images), []
    with torch.inference_mode():
        vanilla = Sampler(point.base, point.sampling)
        for record in vanilla.start(numbers % 10, vanilla.noise(0, numbers)):
            walk.on_step(record)
            records.append(record)
    return records


@pytest.mark.parametrize(
    ("name", "memory"), [("reuse", 1), ("shortcut", 1), ("history", 2), ("taylorseer", 2), ("order 2", 3)]
)
def test_errors_are_those_of_the_fidelity_analysis_with_these_full_steps(sampler, name, memory):
    point = sampler(name)
    assert memory_of(point.accelerator.predictor, point.base) == memory
    walk = SegmentWalk(point, memory, N)
    walked(point, walk)
    found = dict(zip(segments(N, memory, N), walk.errors().unbind(1), strict=True))
    seen = 0
    for history in {segment.history for segment in found}:
        plan = Table(tuple(sorted({0, *history})))
        if tuple(plan.steps[-memory:]) != history:
            continue  # step 0 would be known, too
        fidelity = Walk([sampler(name, plan)])
        walked(point, fidelity)
        (measured,) = fidelity.measured()
        for step in range(history[-1] + 1, N):
            error, kl = measured.values[:, step, 0], measured.values[:, step, 1]
            _, masked, of_features = found[Segment(history, step)].unbind(1)
            assert torch.allclose(masked, kl, atol=1e-12)
            assert torch.allclose(of_features, error, atol=1e-12)
            assert (masked > 0).all()
            seen += 1
    assert seen >= 10


def test_the_kl_of_revealed_tokens_is_summed_over_these_alone(sampler):
    point = sampler("shortcut")
    walk = SegmentWalk(point, 1, N)
    records = walked(point, walk)
    for start in (0, 2):
        state = point.accelerator.predictor.start(point.base, records[0].branches[0])
        state.update(start, records[start].features[0])
        for last, record in zip(records[start:], records[start + 1 :], strict=False):
            now = record.tokens_before(point.base.spec.vocab_size)
            features = [state.predict(record.index, now, last.new_positions, record.moment)]
            (wanted,) = compare(point, record, [features], record.new_positions)
            found = walk.found[Segment((start,), record.index)]
            assert torch.allclose(found[:, 0], wanted[:, 1] * record.new_positions.shape[1], atol=1e-12)


@pytest.mark.parametrize("name", ["taylorseer", "shortcut"])
def test_errors_are_the_same_at_any_batch_size_and_in_parts(sampler, monkeypatch, name):
    point, together = sampler(name), None
    for logits in (module.MOST_LOGITS, 3 * 24 * 2):
        monkeypatch.setattr(module, "MOST_LOGITS", logits)
        walk = SegmentWalk(point, 2, 3)
        walked(point, walk)
        together = walk.errors() if together is None else together
        assert torch.allclose(walk.errors(), together, atol=1e-12)
    for image in range(3):
        alone = SegmentWalk(point, 2, 3)
        walked(point, alone, [image])
        assert torch.allclose(alone.errors()[0], together[image], atol=1e-9)
    assert together.shape == (3, len(segments(N, 2, 3)), len(SEGMENT_ERRORS))


def test_only_what_can_still_be_needed_is_kept(sampler):
    point, done = sampler("taylorseer"), []
    walk = SegmentWalk(point, 2, 1, done.append)
    alive = []

    class Watched:
        def on_step(self, record):
            walk.on_step(record)
            alive.append((set(walk.kept), len(walk.states)))

    walked(point, Watched())
    assert all(len(kept) <= 3 for kept, _ in alive)  # two steps before the last one
    assert max(count for _, count in alive) <= 4
    assert sum(done) == 3 * len(segments(N, 2, 1))


def test_what_keeps_values_of_layers_is_refused(sampler, tiny_base, make_sampling):
    forecast = Accelerator(Always(), Forecast(Taylor(1), "module"), "taylorseer_module")
    point = Sampler(tiny_base, make_sampling(), forecast)
    branches = point.start(torch.arange(1), point.noise(0, torch.arange(1))).branches
    with pytest.raises(UserError, match=naming("accelerator=taylorseer_module", "values of layers")):
        refuse_layers(point, branches)
    refuse_layers(sampler("reuse"), branches)
