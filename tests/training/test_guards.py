"""Losses and gradients that are not finite: the batch is named, and the training stops or goes on without it."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_parts import collected, naming, tiny

from migm.config.building import build
from migm.runtime.errors import UserError
from migm.training.guards import FiniteGuard, Seen, named
from migm.training.module import ShortcutModule
from migm.training.run import Training
from migm.trajectories.dataset import PairDataset


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("stored")
    collected(tiny(output))
    return output


def training(stored: Path, output: Path, *overrides: str) -> tuple[Training, Any]:
    shared = [f"data.folder={tiny(stored).data['folder']}", "trainer.max_steps=6", "lr_schedule.warmup_steps=2"]
    config = tiny(output, *shared, *overrides)
    return Training(config, build(config.base)), build(config.data)


def spoil(monkeypatch, how: str, seen: list[Any]) -> None:
    """Make the loss, or one gradient, of step 3 infinite or NaN; note every batch and the weights before it."""
    step = ShortcutModule.training_step

    def spoiled(self, batch, i):
        weights = {name: p.detach().clone() for name, p in self.shortcut.named_parameters()}
        seen.append((batch, weights))
        loss = step(self, batch, i)
        if self.global_step != 3:
            return loss
        if how == "gradient":
            first = next(self.shortcut.parameters())
            handle = first.register_hook(
                lambda grad: (handle.remove(), grad.index_fill(0, torch.tensor([0]), torch.inf))[1]
            )
            return loss
        return loss * float(how)

    monkeypatch.setattr(ShortcutModule, "training_step", spoiled)


@pytest.mark.parametrize(("how", "words"), [("nan", "the loss is nan"), ("gradient", "a gradient is not finite")])
@pytest.mark.parametrize(("every", "steps"), [(4, 4), (5, 5), (50, 6)], ids=["at once", "where logged", "at the end"])
def test_the_batch_is_named_and_nothing_goes_on(stored, tmp_path, monkeypatch, how, words, every, steps):
    seen: list[Any] = []
    spoil(monkeypatch, how, seen)
    made, data = training(stored, tmp_path, f"trainer.log_every_n_steps={every}")
    with pytest.raises(UserError, match=naming("training step 3", words, "callbacks.guard.non_finite=skip")) as error:
        made.run(data)
    assert len(seen) == steps
    batch = seen[3][0]
    for image, step in zip(batch.images.tolist(), batch.steps.tolist(), strict=True):
        assert f"image {image} step {step}" in str(error.value)
    assert not made.weights.exists()
    assert not made.resume.exists()


@pytest.mark.parametrize("why", ["a checkpoint", "a validation"])
def test_the_last_checkpoint_is_from_before_and_the_training_goes_on_from_it(stored, tmp_path, monkeypatch, why):
    every = {"a checkpoint": 2, "a validation": 3}[why]
    more = [f"callbacks.checkpoint.every_n_train_steps={every}"]
    more += ["trainer.val_check_interval=5"] * (why == "a validation")
    seen: list[Any] = []
    with monkeypatch.context() as patch:
        spoil(patch, "nan", seen)
        made, data = training(stored, tmp_path, *more)
        with pytest.raises(UserError, match="training step 3"):
            made.run(data)
    assert len(seen) == {"a checkpoint": 4, "a validation": 5}[why]
    kept = torch.load(made.resume, map_location="cpu", weights_only=True)
    assert kept["global_step"] == every
    assert all(x.isfinite().all() for x in kept["state_dict"].values())
    made, data = training(stored, tmp_path, *more)
    assert made.run(data) < 1e9
    assert all(p.isfinite().all() for p in made.module.parameters())


def test_a_logging_interval_of_any_length_leaves_at_most_fifty_steps_unread():
    guard, weight = FiniteGuard(), torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    module = SimpleNamespace(parameters=lambda: [weight])
    strategy = SimpleNamespace(reduce=lambda bad, reduce_op: bad)
    for every in (0, 1000):
        trainer = SimpleNamespace(scaler=None, strategy=strategy, log_every_n_steps=every, global_step=0)
        for trainer.global_step in range(10, 130):
            guard.seen = [(None, torch.tensor(1.0))]  # type: ignore[list-item]
            guard.on_before_optimizer_step(trainer, module, None)  # type: ignore[arg-type]
            assert len(guard.unread) < 50


def test_a_bad_step_of_one_rank_stops_all(stored):
    guard, weight = FiniteGuard(), torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    module = SimpleNamespace(parameters=lambda: [weight])
    strategy = SimpleNamespace(reduce=lambda bad, reduce_op: bad + torch.tensor([0.0, 1.0]))
    trainer = SimpleNamespace(scaler=None, strategy=strategy, log_every_n_steps=2, global_step=6)
    batch = pairs(stored)
    for trainer.global_step in (6, 7):
        guard.on_train_batch_start(trainer, module, batch, 0)  # type: ignore[arg-type]
        guard.on_before_backward(trainer, module, torch.tensor(1.0))  # type: ignore[arg-type]
        if trainer.global_step == 6:
            guard.on_before_optimizer_step(trainer, module, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="training step 7"):
        guard.on_before_optimizer_step(trainer, module, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["inf", "gradient"])
def test_by_setting_that_batch_changes_no_weight_and_the_rest_goes_on(stored, tmp_path, monkeypatch, capsys, how):
    seen: list[Any] = []
    spoil(monkeypatch, how, seen)
    made, data = training(stored, tmp_path, "callbacks.guard.non_finite=skip")
    made.run(data)
    assert len(seen) == 6
    weights = [weights for _, weights in seen]
    changed = [any(not torch.equal(a[name], b[name]) for name in a) for a, b in pairwise(weights)]
    assert changed == [True, True, True, False, True]
    assert all(p.isfinite().all() for p in made.module.parameters())
    assert "left out: training step 3" in " ".join(capsys.readouterr().err.split())
    assert float(made.trainer.logged_metrics["train/skipped_steps"]) == 1


def test_one_rank_with_such_a_batch_makes_all_leave_theirs_out(stored):
    """What Lightning's strategy decides for all ranks counts, not what this one saw."""
    guard, weight = FiniteGuard("skip"), torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    decisions: list[bool] = []

    def reduce(own: bool) -> bool:
        decisions.append(own)
        return False

    batch = pairs(stored)
    module = SimpleNamespace(parameters=lambda: [weight], log=lambda *_: None)
    trainer = SimpleNamespace(scaler=None, strategy=SimpleNamespace(reduce_boolean_decision=reduce), global_step=7)
    guard.on_train_batch_start(trainer, module, batch, 0)  # type: ignore[arg-type]
    guard.on_before_backward(trainer, module, torch.tensor(1.0))  # type: ignore[arg-type]
    guard.on_before_optimizer_step(trainer, module, None)  # type: ignore[arg-type]
    assert decisions == [True]
    assert weight.grad is None
    assert guard.skipped == 1


def pairs(stored: Path) -> Any:
    made = build(tiny(stored).data)
    made.setup()
    assert isinstance(made.train, PairDataset)
    return made.train.__getitems__([0, 7, 11])


def test_stored_features_that_are_at_fault_are_named_alone(stored):
    batch = pairs(stored)
    everything = named(Seen.of(batch))
    assert everything.count("image") == 3
    batch.target[1, 2, 3] = torch.inf
    image, step = int(batch.images[1]), int(batch.steps[1])
    assert named(Seen.of(batch)).startswith(f"image {image} step {step} (stored features")
