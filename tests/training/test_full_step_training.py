"""Trainings of networks that start from full steps: what they learn, what is logged, how they resume, refusals."""

import pytest
import torch
from tiny_parts import collected, naming, same_tensors, tiny

from migm.config.building import build
from migm.runtime.errors import UserError
from migm.shortcuts.anchored import AnchoredShortcut
from migm.shortcuts.checkpoint import load_shortcut
from migm.shortcuts.maskgit import MaskGITShortcut
from migm.training.guided import Sites
from migm.training.module import ShortcutModule
from migm.training.objective import FeatureLoss
from migm.training.rollout import Situation
from migm.training.run import Training
from migm.trajectories.dataset import PairDataset
from migm.trajectories.gaps import Gaps

NETWORKS = ["anchored", "history", "forecast"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The folder of the trajectories that all trainings here share, and their store."""
    config = tiny(tmp_path_factory.mktemp("stored"))
    return f"data.folder={config.data['folder']}", collected(config)


def trained(stored, output, *overrides):
    config = tiny(output, stored[0], "lr_schedule.warmup_steps=5", *overrides)
    training = Training(config, build(config.base))
    training.run(build(config.data))
    return training


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_a_short_training_lowers_the_masked_error_of_every_gap_below_that_of_reuse(network, stored, tmp_path):
    more = ("shortcut.max_gap=3", "trainer.max_steps=300", "callbacks.ema.decay=0.9")
    training = trained(stored, tmp_path, f"shortcut={network}", *more)
    net, _ = load_shortcut(training.weights, training.base.fingerprint(), "weights")
    data = PairDataset(stored[1], 0, 8, gaps=Gaps.of(net))
    for gap in (1, 3):
        log = FeatureLoss()(net, training.base, data.__getitems__(data.of_gap(gap).tolist()))[1]
        assert log["feature_mse"] < 0.8 * log["reuse_mse"], gap


def test_validation_logs_the_error_one_step_ahead_and_as_far_as_the_network_predicts(stored, tmp_path):
    training = trained(stored, tmp_path, "shortcut=anchored", "shortcut.max_gap=3", "trainer.max_steps=10")
    found = {name: float(value) for name, value in training.trainer.callback_metrics.items() if name.startswith("val/")}
    net, data = training.module.shortcut, PairDataset(stored[1], 8, 12, gaps=Gaps(3))
    for gap, suffix in ((1, ""), (3, "_gap3")):
        log = FeatureLoss()(net, training.base, data.__getitems__(data.of_gap(gap).tolist()))[1]
        assert found[f"val/reuse_mse{suffix}"] == pytest.approx(float(log["reuse_mse"]), rel=1e-4)
    assert found["val/reuse_mse"] < found["val/reuse_mse_gap3"]


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.slow
def test_a_resumed_training_of_drawn_gaps_equals_an_uninterrupted_one(stored, tmp_path, monkeypatch):
    chosen = ("shortcut=history", "trainer.max_steps=16", "callbacks.checkpoint.every_n_train_steps=7")
    whole = trained(stored, tmp_path / "whole", *chosen).weights
    step = ShortcutModule.training_step

    def dying(self, batch, i):
        if self.global_step == 9:
            raise Killed
        return step(self, batch, i)

    with monkeypatch.context() as patch:
        patch.setattr(ShortcutModule, "training_step", dying)
        with pytest.raises(Killed):
            trained(stored, tmp_path / "resumed", *chosen)
    assert same_tensors(trained(stored, tmp_path / "resumed", *chosen).weights, whole)


def test_an_objective_that_chains_is_refused_before_any_work(tmp_path):
    config = tiny(tmp_path, "shortcut=anchored", "objective=rollout")
    with pytest.raises(UserError, match=naming("objective.rollout", "AnchoredShortcut", "full", "objective=mse")):
        Training(config, build(config.base))


def test_a_gap_that_no_trajectory_has_is_refused(tmp_path):
    config = tiny(tmp_path, "shortcut=anchored", "shortcut.max_gap=6")
    with pytest.raises(UserError, match=naming("shortcut.max_gap=6", "1 to 5", "sampling.num_steps")):
        Training(config, build(config.base))


def test_pairs_that_are_not_those_of_the_network_are_refused(stored):
    base = build(tiny(stored[1].folder).base)
    for net, gaps in ((AnchoredShortcut(48, num_heads=2), None), (MaskGITShortcut(48, num_heads=2), Gaps(2))):
        batch = PairDataset(stored[1], gaps=gaps).__getitems__([0, 1])
        with pytest.raises(UserError, match=naming("shortcut", type(net).__name__, "pairs")):
            FeatureLoss()(net, base, batch)


@pytest.mark.parametrize(
    ("points", "wanted"),
    [
        ("{shortcut: [[16,4],[16,2]], vanilla: [2]}", 7),
        ("{shortcut: [[6,2],{num_steps: 12, num_full_steps: 5}], reuse: [[16,2]]}", 2),
        ("{shortcut_interval: [12], shortcut: [{num_steps: 9, num_full_steps: 2, policy.rule: paper}]}", 4),
        ("null", 3),
        ("{shortcut: [[4,4]]}", 1),
        ("{shortcut: [[64,4]]}", 7),  # as far as trajectories reach
    ],
)
def test_the_longest_gap_follows_from_points(points, wanted, tmp_path):
    steps = ("sampling.num_steps=8", "sampling.num_full_steps=2")
    config = tiny(tmp_path, "shortcut=anchored", *steps, f"points={points}")
    assert config.shortcut["max_gap"] == wanted


@pytest.mark.parametrize("network", ["anchored_dimoo", "history", "history_dimoo", "forecast", "forecast_dimoo"])
def test_every_yaml_builds(network, tmp_path):
    base = ["base=dimoo_tiny", "sampling=dimoo_tiny"] if "dimoo" in network else []
    net = build(tiny(tmp_path, f"shortcut={network}", *base).shortcut)
    assert net.reads != "last_step"
    with torch.no_grad():
        assert not net.body.proj_out.weight.any()


@pytest.mark.slow
def test_guided_terms_judge_the_step_that_is_predicted(stored, tmp_path):
    """Both halves of an image are as far apart, and rows wait from the target's step on."""
    more = ("shortcut=history", "shortcut.max_gap=3", "objective=guided_kl_soon", "trainer.max_steps=10")
    training = trained(stored, tmp_path, *more)
    names = {name for name in training.trainer.callback_metrics if name.startswith("val/")}
    assert {"val/fidelity_kl", "val/fidelity_kl_gap3", "val/guided_kl", "val/guided_kl_gap3"} <= names
    data = PairDataset(stored[1], together=True, gaps=Gaps(3, earlier=True))
    batch = data.__getitems__(data.of_gap(3).tolist())
    now = Situation.of(batch, training.base)
    sites = Sites.of(training.base, batch, now, batch.target, batch.target, None)
    soonest = sites.wait.where(sites.masked, 99).min(1).values
    assert soonest.tolist() == [0] * len(soonest)  # the next step reveals some of every image
