"""On a pretended CUDA device the host waits at no training step between two that log."""

import traceback
from collections import Counter
from pathlib import Path

import lightning as L
import pytest
from pretend_cuda import Pretended, pretended
from tiny_parts import composed
from waits import Waits

from migm.config.building import build, load
from migm.config.roots import TrainConfig
from migm.sampling.sampler import Sampler
from migm.training.run import Training

STEPS, EVERY = 9, 4  # steps of a training, and between two that log
WARM = 3  # steps in which what is kept is made: the first average, counts of roll-outs, tables of positions
KINDS = {
    "maskgit": ["+experiment=tiny_shortcut", "lr_schedule.warmup_steps=2"],
    "dimoo": ["+experiment=dimoo_tiny", "base.random_weights=true", "base.transformer.n_layers=1"],
}
SMALL = ["data.num_images=12", "data.num_val_images=2", "data.shard_images=12", "data.batch_size=3"]
TWO = ["data.batch_size=4"]  # so that both halves of an image fit
MARGINAL = "+objective.terms.marginal={_target_: migm.training.terms.marginal.Marginal}"
QUICK = ["sampling.num_steps=5", "sampling.num_full_steps=2", "optimizer=adamw"]


def where() -> str:
    """The innermost lines of the program and of Lightning."""
    frames = [f for f in traceback.extract_stack() if {"migm", "lightning"} & set(Path(f.filename).parts)]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames[-3:]))


class Marks(L.Callback):
    """Count what waited by the step that it was in; what comes between epochs belongs to none."""

    def __init__(self, waits: Waits):
        self.waits, self.of = waits, dict[int, Counter[str]]()

    def on_train_batch_start(self, trainer, *_):
        self.collect(trainer.global_step - 1)

    def on_train_epoch_start(self, *_):
        self.waits.found.clear()

    def on_train_epoch_end(self, trainer, *_):
        self.waits.found.clear()

    def collect(self, step):
        self.of[step] = Counter(self.waits.found)
        self.waits.found.clear()


def waited(output: Path, kind: str, *overrides: str) -> dict[int, Counter[str]]:
    """Operators that made the host wait at each step of a training, data and callbacks included."""
    lines = [*KINDS[kind], *SMALL, *QUICK, f"paths.output_dir={output}", "device=cuda", "trainer.precision=32-true"]
    lines += [f"trainer.max_steps={STEPS}", f"trainer.log_every_n_steps={EVERY}", "+trainer.limit_val_batches=0"]
    config = load(composed("train", *lines, *overrides), TrainConfig)
    base, data = build(config.base), build(config.data)
    sampler = Sampler(base, build(config.sampling))
    data.attach(sampler, config.seed)
    data.storage.prepare(sampler, data, config.seed, STEPS)
    training = Training(config, base)
    data.serve(training.module.shortcut)
    with Waits(lambda x: isinstance(x, Pretended), where) as waits:
        training.trainer.callbacks.append(marks := Marks(waits))  # type: ignore[attr-defined]
        data.together = training.together
        training._fit(data)
    return {step: found for step, found in marks.of.items() if step >= WARM}


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("maskgit", []),
        ("maskgit", ["data/storage=tokens", "objective=rollout_3", "+objective.kl_weight=0.5"]),
        ("maskgit", ["data/storage=tokens", "shortcut=forecast"]),
        ("dimoo", ["data/storage=tokens", "objective=mse_all_rows"]),
        ("dimoo", ["data/storage=features", "objective=rollout"]),
        ("maskgit", [*TWO, "objective=guided_kl_rollout", "objective.terms.guided_kl.floor=0.1", MARGINAL]),
        ("dimoo", [*TWO, "data/storage=tokens", "objective=guided_kl_marginal"]),
    ],
    ids=[
        *("features", "tokens and rollout", "tokens from full steps", "dimoo tokens", "dimoo rollout"),
        *("guided rollout", "dimoo guided"),
    ],
)
def test_the_host_waits_at_logging_steps_alone(tmp_path, monkeypatch, kind, overrides):
    monkeypatch.setattr(Pretended, "tolist", lambda x: [y.item() for y in x])  # so that it is noted
    with pretended():
        found = waited(tmp_path, kind, *overrides)
    assert set(range(WARM, STEPS - 1)) <= found.keys()
    logging = [step for step in found if (step + 1) % EVERY == 0]
    assert all(found[step] for step in logging)  # the guard reads: what is noted is noted
    assert {step: dict(x) for step, x in found.items() if x and step not in logging} == {}


def test_to_leave_bad_batches_out_waits_at_every_step(tmp_path):
    with pretended():
        found = waited(tmp_path, "maskgit", "callbacks.guard.non_finite=skip")
    assert all("guards.py" in " ".join(x) for step, x in found.items() if step < STEPS - 1)
