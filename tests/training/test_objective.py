"""What the shortcut is trained to do: formulas, against the original step and against trivial cases."""

import pytest
import torch
from tiny_parts import Watched, moment, naming, tiny
from torch.nn.functional import cosine_similarity, kl_div

from migm.bases.base import image_rows
from migm.config.building import build
from migm.runtime.errors import UserError
from migm.sampling.noise import KeyedNoise
from migm.sampling.order import AllMasked, Halton
from migm.sampling.sampler import Sampler
from migm.shortcuts.losses import masked_cosine, masked_kl, masked_mse
from migm.shortcuts.maskgit import MaskGITShortcut
from migm.training.objective import FeatureLoss
from migm.training.rollout import Rollout, Situation, predict
from migm.training.schedule import trapezoid
from migm.trajectories.collect import collect
from migm.trajectories.dataset import PairDataset


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """The tiny base and its pairs."""
    config = tiny(tmp_path_factory.mktemp("objective"))
    sampler = Sampler(build(config.base), build(config.sampling))
    return sampler.base, PairDataset(collect(sampler, build(config.data), config.seed))


def test_masked_mse_is_the_mean_over_masked_rows_and_channels():
    torch.manual_seed(0)
    predicted, target, masked = torch.randn(3, 5, 4), torch.randn(3, 5, 4), torch.rand(3, 5) > 0.5
    expected = (predicted[masked] - target[masked]).square().mean()
    assert masked_mse(predicted, target, masked).item() == pytest.approx(expected.item(), rel=1e-6)


def test_masked_losses_ignore_unmasked_rows_and_their_gradient():
    torch.manual_seed(0)
    predicted, target = torch.randn(3, 5, 4, requires_grad=True), torch.randn(3, 5, 4)
    masked = torch.rand(3, 5) > 0.5
    far = predicted.detach() + 1e3 * ~masked[..., None]
    assert torch.equal(masked_mse(far, target, masked), masked_mse(predicted, target, masked))
    assert torch.equal(masked_cosine(far, target, masked), masked_cosine(predicted, target, masked))
    masked_mse(predicted, target, masked).backward()
    assert not predicted.grad[~masked].any()
    assert predicted.grad[masked].all()


@pytest.mark.parametrize("loss", [masked_mse, masked_cosine])
def test_without_masked_rows_a_loss_is_zero_and_finite(loss):
    assert loss(torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)) == 0


def test_masked_cosine_is_the_mean_over_masked_rows():
    torch.manual_seed(0)
    predicted, target, masked = torch.randn(3, 5, 4), torch.randn(3, 5, 4), torch.rand(3, 5) > 0.5
    expected = cosine_similarity(predicted[masked], target[masked], dim=-1).mean()
    assert masked_cosine(predicted, target, masked).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_shortcut_that_adds_nothing_costs_what_reuse_costs(tiny_run):
    base, pairs = tiny_run
    shortcut = MaskGITShortcut(48, num_heads=2)
    torch.nn.init.zeros_(shortcut.proj_out.weight)
    torch.nn.init.zeros_(shortcut.proj_out.bias)
    loss, log = FeatureLoss()(shortcut, base, pairs.__getitems__(range(20)))
    assert loss.item() == log["feature_mse"].item() == log["reuse_mse"].item() > 0


def test_a_perfect_shortcut_costs_nothing(tiny_run):
    base, pairs = tiny_run
    batch = pairs.__getitems__(range(8))

    class Oracle(torch.nn.Linear):
        def forward(self, features, *_):
            return batch.target.float()

    loss, log = FeatureLoss()(Oracle(1, 1), base, batch)
    assert loss == 0
    assert log["feature_cosine"].item() == pytest.approx(1, abs=1e-5)


def test_a_shortcut_learns_a_handful_of_pairs(tiny_run):
    base, pairs = tiny_run
    torch.manual_seed(0)
    shortcut, batch = MaskGITShortcut(48, num_heads=2), pairs.__getitems__(range(4))
    optimizer = torch.optim.AdamW(shortcut.parameters(), lr=3e-3)
    for _ in range(150):
        loss, log = FeatureLoss()(shortcut, base, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert log["feature_mse"] < 0.2 * log["reuse_mse"]


def test_padding_does_not_change_a_prediction(tiny_run):
    base, pairs = tiny_run
    torch.manual_seed(0)
    shortcut, batch = MaskGITShortcut(48, num_heads=2), pairs.__getitems__(range(5))
    assert (batch.new.sum(1) < batch.width).any()
    together = predict(shortcut, base, Situation.of(batch, base))
    for i in range(5):
        alone = predict(shortcut, base, Situation.of(pairs.__getitems__([i]), base))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-5)


def test_the_base_gets_no_gradient(tiny_run):
    base, pairs = tiny_run
    shortcut = MaskGITShortcut(48, num_heads=2)
    FeatureLoss()(shortcut, base, pairs.__getitems__(range(4)))[0].backward()
    assert all(p.grad is None and not p.requires_grad for p in base.transformer.parameters())
    assert all(p.grad is not None for p in shortcut.parameters())


@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])
def test_masked_kl_is_the_mean_over_masked_rows(direction):
    torch.manual_seed(0)
    student, teacher, masked = torch.randn(3, 5, 7), torch.randn(3, 5, 7), torch.rand(3, 5) > 0.5
    p, q = (x[masked].log_softmax(-1) for x in ((teacher, student) if "teacher_s" in direction else (student, teacher)))
    expected = kl_div(q, p, log_target=True, reduction="batchmean")
    assert masked_kl(student, teacher, masked, direction).item() == pytest.approx(expected.item(), rel=1e-5)
    assert masked_kl(teacher, teacher, masked, direction) == 0


def test_the_divergence_is_that_of_the_heads_logits_at_a_temperature(tiny_run):
    base, pairs = tiny_run
    torch.manual_seed(0)
    shortcut, batch = MaskGITShortcut(48, num_heads=2), pairs.__getitems__(range(6))
    mse, _ = FeatureLoss()(shortcut, base, batch)
    total, log = FeatureLoss(mse_weight=2.0, kl_weight=0.5, kl_temperature=3.0)(shortcut, base, batch)
    predicted = predict(shortcut, base, Situation.of(batch, base)).double()
    branch = base.branch(batch.conditions)
    heads = (base.head(image_rows(x, branch)).float() / 3 for x in (predicted, batch.target.double()))
    kl = masked_kl(*heads, batch.masked)
    assert kl > 0
    assert log["logit_kl"].item() == pytest.approx(kl.item(), rel=1e-4)
    assert total.item() == pytest.approx((2 * mse + 0.5 * 9 * kl).item(), rel=1e-4)


def test_a_loss_of_nothing_is_refused():
    with pytest.raises(ValueError, match=naming("objective.mse_weight=0.0", "objective.kl_weight=0.0", "above 0")):
        FeatureLoss(mse_weight=0.0)


@pytest.fixture
def make_rollout(make_sampling):
    sampling = make_sampling()

    def make(max_length, **changes):
        return Rollout(max_length, **{**vars_of(sampling), **changes})

    return make


def vars_of(sampling):
    return {name: getattr(sampling, name) for name in ("num_steps", "schedule", "draw", "select")}


def test_a_rollout_of_one_step_is_the_stored_pair(tiny_run, make_rollout):
    base, pairs = tiny_run
    shortcut, batch = MaskGITShortcut(48, num_heads=2), pairs.__getitems__(range(10))
    now, target = make_rollout(3)(shortcut, base, batch, iteration=3)  # 1, 2, 3, then 1 again
    assert target is batch.target
    start = Situation.of(batch, base)
    for value, stored in zip(now[1:], start[1:], strict=True):
        assert value is stored or torch.equal(value, stored)
    assert torch.equal(now.branch.condition, start.branch.condition)


def test_a_rollout_reveals_as_the_schedule_says_and_ends_with_the_trajectory(tiny_run, make_rollout):
    base, pairs = tiny_run
    torch.manual_seed(0)
    shortcut, batch = MaskGITShortcut(48, num_heads=2), pairs.__getitems__(range(10))  # both halves of an image
    counts, start = [1, 2, 3, 3, 4, 3], Situation.of(batch, base)
    watched = Watched(base)
    now, target = make_rollout(3)(shortcut, watched, batch, iteration=2)
    steps_of = [min(s + 3, 5) for s in batch.steps.tolist() if s + 1 < 5]  # at which the base is asked
    assert [at.step.tolist() for at in watched.asked] == [steps_of]
    for row, s in enumerate(batch.steps.tolist()):
        steps = min(3, 5 - s)  # of 6 steps the last has no successor
        assert int(now.masked[row].sum()) == sum(counts[s + steps :])
        assert int(now.new[row].sum()) == counts[s + steps - 1]
        assert ((now.tokens[row] == 24) == now.masked[row]).all()
        known = ~start.masked[row]
        assert torch.equal(now.tokens[row][known], start.tokens[row][known])
        if steps == 1:
            assert torch.equal(target[row], batch.target[row])
        else:
            branch = base.branch(batch.conditions[row : row + 1])
            with torch.no_grad():
                true = base.features(now.tokens[row : row + 1], branch, moment(now.mask_ratio[row : row + 1]))
            torch.testing.assert_close(target[row], true[0].to(target.dtype))


@pytest.mark.parametrize("roll", [False, True])
def test_a_rollout_goes_on_in_the_order_of_its_trajectory(tiny_run, make_rollout, roll):
    base, pairs = tiny_run
    shortcut, batch = MaskGITShortcut(48, num_heads=2), pairs.__getitems__([0, 1, 20, 21])
    order, noise = Halton(roll), KeyedNoise(0, batch.images)
    ranks = order.ranks(base.spec, noise, batch.tokens)
    assert (ranks[0] != ranks[-1]).any() == roll
    start = Situation.of(batch, base)
    now = make_rollout(3, order=order)(shortcut, base, batch, iteration=2)[0]
    for row in range(4):
        left = sorted(start.masked[row].nonzero()[:, 0].tolist(), key=lambda p: int(ranks[row, p]))
        assert sorted(left[len(left) - int(now.masked[row].sum()) :]) == now.masked[row].nonzero()[:, 0].tolist()
        assert (now.tokens[row] < 24)[~now.masked[row]].all()


def test_a_rollout_in_no_order_is_one_of_all_masked_positions(tiny_run, make_rollout):
    base, pairs = tiny_run
    torch.manual_seed(0)
    shortcut, batch = MaskGITShortcut(48, num_heads=2), pairs.__getitems__(range(3))
    tokens = [make_rollout(2, order=order)(shortcut, base, batch, 1)[0].tokens for order in (None, AllMasked())]
    assert torch.equal(*tokens)


def test_a_rollout_in_an_order_that_is_not_known_ahead_is_refused(make_rollout):
    class Later:
        start = None

    with pytest.raises(UserError, match=naming("objective.rollout", "sampling.order=Later", "no ranks")):
        make_rollout(2, order=Later())


def test_the_condition_of_a_pair_is_its_half(tiny_run):
    base, pairs = tiny_run
    batch = pairs.__getitems__([0, 5, 10, 15])
    assert batch.halves.tolist() == [0, 1, 0, 1]
    assert batch.images.tolist() == [0, 0, 1, 1]
    assert batch.conditions.tolist() == [[0], [10], [1], [10]]  # labels in turn; 10 is none
    assert Situation.of(batch, base).branch.condition.tolist() == [[0], [10], [1], [10]]


def test_a_rollout_is_repeatable_and_another_in_another_iteration(tiny_run, make_rollout):
    base, pairs = tiny_run
    torch.manual_seed(0)
    shortcut, batch = MaskGITShortcut(48, num_heads=2), pairs.__getitems__(range(3))
    tokens = [make_rollout(2)(shortcut, base, batch, iteration)[0].tokens for iteration in (1, 1, 3)]
    assert torch.equal(tokens[0], tokens[1])
    assert not torch.equal(tokens[0], tokens[2])


def test_only_the_last_step_of_a_rollout_has_gradients(tiny_run, make_rollout):
    base, pairs = tiny_run
    shortcut, batch = MaskGITShortcut(48, num_heads=2), pairs.__getitems__(range(3))
    now, target = make_rollout(2)(shortcut, base, batch, iteration=1)
    assert not any(tensor.requires_grad for tensor in (now.features, target))
    FeatureLoss(rollout=make_rollout(2))(shortcut, base, batch, 1)[0].backward()
    assert all(p.grad is not None for p in shortcut.parameters())


def test_impossible_rollouts_are_refused(make_rollout):
    with pytest.raises(ValueError, match=naming("objective.rollout.max_length=6", "1 and", "5")):
        make_rollout(6)


def test_the_trapezoid_rises_stays_and_falls_to_zero():
    parameter = torch.nn.Parameter(torch.zeros(1))
    schedule = trapezoid(torch.optim.SGD([parameter], lr=1.0), total_steps=20, warmup_steps=4, decay=0.5)
    rates = []
    for _ in range(21):
        rates.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:11] == [1.0] * 7
    assert rates[11:] == pytest.approx([1 - i / 10 for i in range(1, 11)])
