"""Losses and roll-outs where the guidance halves are sequences of different length."""

import pytest
import torch
from tiny_parts import Apart, tiny
from torch.nn.functional import cosine_similarity

from migm.bases.base import image_rows
from migm.config.building import build
from migm.sampling.sampler import Sampler
from migm.shortcuts.losses import masked_kl
from migm.shortcuts.maskgit import MaskGITShortcut
from migm.training.objective import FeatureLoss
from migm.training.rollout import Rollout
from migm.trajectories.collect import collect
from migm.trajectories.dataset import PairDataset

INDEX = list(range(0, 120, 7))  # pairs of many images, halves and steps


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A base and its pairs: the tiny one, and the same with its halves apart, their sequences padded."""

    def made(base, name, *overrides):
        config = tiny(tmp_path_factory.mktemp(name), *overrides)
        sampler = Sampler(base, build(config.sampling))
        return base, PairDataset(collect(sampler, build(config.data), config.seed))

    base = build(tiny(tmp_path_factory.mktemp("base")).base)
    return made(base, "together"), made(Apart(base), "apart", "data.shard_images=2")


class RowByRow(torch.nn.Linear):
    """A shortcut that looks at no other row, so that it does not matter where the image lies."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(48, 48)

    def forward(self, features, *_):
        return super().forward(features)


def test_the_pairs_hold_the_same_images(both):
    (_, pairs), (apart, padded) = both
    batch, same = pairs.__getitems__(range(120)), padded.__getitems__(range(120))
    assert (len(pairs), len(padded), same.features.shape) == (120, 120, (120, 20, 48))
    assert (same.conditions >= 0).sum(1).unique().tolist() == [1, 2, 3, 4]
    branch = apart.branch(same.conditions, 20)
    for ours, theirs in ((same.features, batch.features), (same.target, batch.target)):
        torch.testing.assert_close(image_rows(ours, branch), theirs[:, :16], rtol=0.01, atol=0.01)  # bfloat16
    for name in ("tokens", "new", "masked", "steps", "halves", "images"):
        assert torch.equal(getattr(same, name), getattr(batch, name)), name


@pytest.mark.parametrize("kl_weight", [0.0, 0.5])
def test_losses_are_those_of_the_image_wherever_it_lies(both, kl_weight):
    (loss, log), (wanted, same) = (
        FeatureLoss(kl_weight=kl_weight)(RowByRow(), base, pairs.__getitems__(INDEX)) for base, pairs in both
    )
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-3)
    assert {name: value.item() for name, value in log.items()} == pytest.approx(
        {name: value.item() for name, value in same.items()}, rel=1e-3
    )


def test_all_rows_are_those_of_the_sequence_without_its_padding(both):
    _, (base, pairs) = both
    batch, shortcut = pairs.__getitems__(INDEX), RowByRow()
    known = base.branch(batch.conditions, 20).mask
    assert 0 < known.sum() < known.numel()
    loss, log = FeatureLoss(rows="all")(shortcut, base, batch)
    features = (shortcut(batch.features.float()), batch.features, batch.target)
    predicted, before, target = (x[known].float() for x in features)
    assert loss.item() == pytest.approx((predicted - target).square().mean().item(), rel=1e-5)
    assert log["reuse_mse"].item() == pytest.approx((before - target).square().mean().item(), rel=1e-5)
    cosine = cosine_similarity(predicted, target, dim=-1).mean()
    assert log["feature_cosine"].item() == pytest.approx(cosine.item(), rel=1e-4)


def test_without_padding_all_rows_are_all(both):
    (base, pairs), _ = both
    batch, shortcut = pairs.__getitems__(range(6)), RowByRow()
    loss, log = FeatureLoss(kl_weight=0.5, rows="all")(shortcut, base, batch)
    predicted, target = shortcut(batch.features.float()), batch.target.float()
    mse = (predicted - target).square().mean()
    heads = (base.head(x.to(base.dtype)).float() for x in (predicted, target))
    kl = masked_kl(*heads, torch.ones(6, 17, dtype=torch.bool))
    assert log["feature_mse"].item() == pytest.approx(mse.item(), rel=1e-5)
    assert log["logit_kl"].item() == pytest.approx(kl.item(), rel=1e-4)
    assert loss.item() == pytest.approx((mse + 0.5 * kl).item(), rel=1e-4)


def test_a_rollout_goes_on_alike_wherever_the_image_lies(both, make_sampling):
    sampling = make_sampling()
    rollout = Rollout(3, sampling.num_steps, sampling.schedule, sampling.draw, sampling.select)
    (now, target), (same, padded) = (
        rollout(RowByRow(), base, pairs.__getitems__(INDEX), iteration=2) for base, pairs in both
    )
    for name in ("tokens", "new", "masked"):
        assert torch.equal(getattr(same, name), getattr(now, name)), name
    torch.testing.assert_close(image_rows(padded, same.branch), target[:, :16], rtol=0.01, atol=0.01)


def test_steps_that_reveal_nothing_train_too(tmp_path):
    config = tiny(tmp_path, "sampling.num_steps=16", "sampling/schedule=cosine_floor")
    base, sampling, data = build(config.base), build(config.sampling), build(config.data)
    pairs = PairDataset(collect(Sampler(base, sampling), data, config.seed))
    nothing = [s for s, count in enumerate(sampling.schedule.counts(16, 16)) if not count]
    torch.manual_seed(0)
    shortcut = MaskGITShortcut(48, num_heads=2)
    for index, width in ((nothing, 0), (range(15), 2)):  # alone, and padded beside others
        batch = pairs.__getitems__(index)
        assert batch.width == width
        assert (batch.new.sum(1) == 0).any()
        loss, _ = FeatureLoss()(shortcut, base, batch)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in shortcut.parameters() if p.grad is not None)
    rollout = Rollout(3, 16, sampling.schedule, sampling.draw, sampling.select)
    now, target = rollout(shortcut, base, pairs.__getitems__(range(15)), iteration=2)
    assert target.isfinite().all()
    counts = sampling.schedule.counts(16, 16)
    assert now.masked.sum(1).tolist() == [sum(counts[min(s + 3, 15) :]) for s in range(15)]
