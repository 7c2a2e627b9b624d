"""Real processes that find each other as torchrun's do: what they collect, train and measure is what one would."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_parts import collected, composed, feature_net, reference_for, tiny
from together import together
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from migm.config.building import build, load
from migm.config.points import points
from migm.config.roots import EvaluateConfig
from migm.evaluation.study import study
from migm.metrics.metric import Batch, QualityMetric
from migm.runtime.distributed import join, rank
from migm.runtime.errors import UserError
from migm.sampling.sampler import Sampler
from migm.training.module import ShortcutModule
from migm.training.run import Training
from migm.trajectories.unlisted import Unlisted

CPU = torch.device("cpu")
MARGINAL = "+objective.terms.marginal={_target_: migm.training.terms.marginal.Marginal}"
# By name: what the training is of. With Muon and averaged weights, or with AdamW.
TRAININGS = {
    "mse": (),
    "kl": ("objective=mse_kl",),
    "all rows": ("objective=mse_all_rows",),
    "rollout": ("objective=rollout",),
    "tokens": ("data/storage=tokens", "optimizer=adamw"),
    "guided": ("objective=guided_kl_rollout", "objective.terms.guided_kl.floor=0.1", MARGINAL, "optimizer=adamw"),
}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def collecting(output: Path, dying: bool = False) -> int:
    """What each process collects; rank 1 may die when its first shard is written but not noted."""
    join(CPU)
    if dying and rank() == 1:
        Unlisted.note = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    return len(collected(tiny(output, "data.shard_images=2")))


def test_a_killed_process_ends_the_others_and_another_number_of_them_finishes_the_store(tmp_path):
    alone, several = tmp_path / "alone", tmp_path / "several"
    assert collecting(alone) == 12
    survivor, killed = together(2, collecting, several, True, killed=1)
    assert killed is None
    assert isinstance(survivor, UserError)
    assert "another process of this run ended" in str(survivor)
    folder = next((several / "trajectories").iterdir())
    assert len(list(folder.glob("*.safetensors"))) == 4  # three of the one, and one of the other that nobody knows
    assert together(3, collecting, several) == [12, 12, 12]
    assert files(folder) == files(next((alone / "trajectories").iterdir()))


def training(output: Path, name: str, batch_size: int, devices: int, *overrides: str, dies: int = -1) -> Any:
    """One training -> errors step by step, images step by step, the validation error, the weights."""
    if devices > 1:
        join(CPU)
    several = [f"trainer.devices={devices}", f"trainer.strategy={'ddp' if devices > 1 else 'auto'}"]
    fixed = [f"name={name}", f"data.batch_size={batch_size}", "trainer.max_steps=12", "lr_schedule.warmup_steps=5"]
    config = tiny(output, *fixed, *several, *overrides)
    base, data = build(config.base), build(config.data)
    data.attach(Sampler(base, build(config.sampling)), config.seed)
    if data.storage.stores:
        collected(config)
    errors: list[float] = []
    images: list[list[int]] = []
    logged, step = ShortcutModule._of_all, ShortcutModule.training_step

    def watching(self: ShortcutModule, log: dict[str, Tensor]) -> Any:
        found = logged(self, log)
        errors.append(float(found[0]["feature_mse"]))
        return found

    def stepping(self: ShortcutModule, batch: Any, i: int) -> Tensor:
        if self.global_step == dies:
            raise InterruptedError
        images.append(batch.images[: len(batch.images) // max(batch.halves_together, 1)].tolist())
        return step(self, batch, i)

    ShortcutModule._of_all, ShortcutModule.training_step = watching, stepping  # type: ignore[method-assign]
    try:
        made = Training(config, base)
        error = made.run(data)
    except InterruptedError:
        return None
    finally:
        ShortcutModule._of_all, ShortcutModule.training_step = logged, step  # type: ignore[method-assign]
    weights = torch.cat([weight.flatten() for weight in made.module.shortcut.state_dict().values()])
    return np.array(errors), images, error, weights.numpy()


def all_trainings(output: Path, batch_size: int, devices: int) -> dict[str, Any]:
    return {name: training(output, name, batch_size, devices, *chosen) for name, chosen in TRAININGS.items()}


def stopped_and_resumed(output: Path, *overrides: str) -> tuple[Any, Any]:
    """Two processes' weights, without a stop and with one in step 8 and checkpoints every 5."""
    every = "callbacks.checkpoint.every_n_train_steps=5"
    whole = training(output, "whole", 4, 2, every, *overrides)
    assert training(output, "stopped", 4, 2, every, *overrides, dies=8) is None
    return whole, training(output, "stopped", 4, 2, every, *overrides)


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path):
    wanted = all_trainings(tmp_path / "alone", 8, 1)
    first, second = together(2, all_trainings, tmp_path / "several", 4, 2)
    for name, (errors, images, error, weights) in wanted.items():
        for found in (first[name], second[name]):
            assert np.allclose(found[0], errors, rtol=2e-4), name
            assert found[2] == pytest.approx(error, rel=2e-4), name
            # AdamW follows gradients that are all but zero, and so rounding, as far as any others.
            assert np.allclose(found[3], weights, atol=1e-3 if name == "guided" else 2e-4), name
        assert np.array_equal(first[name][3], second[name][3]), name
        assert [a + b for a, b in zip(first[name][1], second[name][1], strict=True)] == images, name


def test_two_processes_go_on_exactly_and_generate_images_of_their_own(tmp_path):
    online = ("data/storage=online", "data.shard_images=2", "objective=rollout")
    first, second = together(2, stopped_and_resumed, tmp_path, *online)
    for whole, resumed in (first, second):
        assert np.array_equal(whole[3], resumed[3])
        assert whole[2] == resumed[2]
    assert np.array_equal(first[0][3], second[0][3])
    seen = [{image for batch in found[0][1] for image in batch} for found in (first, second)]
    assert not seen[0] & seen[1]
    assert min(map(len, seen)) > 2


class Ordered(QualityMetric):
    """A value that depends on the order of the images, and on each of them."""

    metric_name, unit, higher_is_better, reference_hash = "ordered", "", True, "none"
    kept: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("kept", [], dist_reduce_fx="cat")

    def update(self, batch: Batch) -> None:
        assert isinstance(self.kept, list)
        self.kept.append(batch.images.double().mean((1, 2, 3)))

    def compute(self) -> Tensor:
        means = dim_zero_cat(self.kept)
        return (means * torch.arange(len(means))).sum()


def measuring(output: Path, assets: Path) -> list[dict[str, Any]]:
    """Measure two points with 45 images in 5 batches -> the records of this process."""
    chosen = ["+experiment=tiny_shortcut", f"paths.output_dir={output}", f"paths.assets={assets}", "device=cpu"]
    chosen += [
        "metric=[fd_cifarnet,class_agreement]",
        "evalset.num_images=45",
        "~points.shortcut",
        "points.vanilla=[2]",
    ]
    cfg = composed("evaluate", *chosen)
    config = load(cfg, EvaluateConfig)
    join(CPU)
    measured = study(points(cfg, config), config, build(config.base))
    measured.metrics = [*measured.metrics, Ordered()]
    measured.repeats = 1
    measured.run()
    return measured.results.records


def test_two_processes_measure_what_one_does(tmp_path):
    assets = tmp_path / "assets"
    reference_for(feature_net(assets / "cifarnet.safetensors"), assets / "cifarnet_train50k.safetensors")
    wanted = measuring(tmp_path / "alone", assets)
    records, other = together(2, measuring, tmp_path / "several", assets)
    assert other == []
    quality = [r["metric"] for r in wanted if "seed_set" in r]
    assert quality == 2 * ["fd_cifarnet_45", "class_agreement_45", "ordered_45"]
    apart = ("value", "seconds", "time", "run")
    for record, one in zip(records, wanted, strict=True):
        assert {k: v for k, v in record.items() if k not in apart} == {k: v for k, v in one.items() if k not in apart}
        if "seed_set" in one or one["metric"] == "ffe":
            assert record["value"] == pytest.approx(one["value"], rel=1e-9)
    several, alone = (tmp_path / name / "tiny_shortcut" for name in ("several", "alone"))
    assert files(several / "images") == files(alone / "images")
    assert not list(several.glob("unfinished*"))
