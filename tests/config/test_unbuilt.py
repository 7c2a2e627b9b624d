"""Commands that neither train nor score neither build nor import what only training and scores need."""

import subprocess
import sys

import pytest
from tiny_parts import ROOT, composed

import migm.analyse
import migm.calibrate
import migm.evaluate
import migm.generate
import migm.place
import migm.plan
import migm.report
import migm.side_by_side
from migm.config.building import load
from migm.config.roots import OF_SCORES, OF_TRAINING, EvaluateConfig, GenerateConfig, TrainConfig
from migm.runtime.errors import UserError

TARGETS = {"callbacks": "callbacks.guard", "metric": "metric.fd_cifarnet"}  # of groups that hold several components
FEW = ["evalset.num_images=2", "evalset.batch_size=2"]
RUNS = [
    (migm.generate, ["labels=[1]", "seeds=[0]", "accelerator=reuse"]),
    (migm.side_by_side, ["~points.shortcut", "labels=[1]"]),
    (migm.plan, []),
    (migm.calibrate, ["num_images=2", "sampling.num_steps=4", "sampling.num_full_steps=2"]),
    (migm.place, ["accelerator=taylorseer", "place.num_images=2"]),
    (migm.analyse, ["~points.shortcut", "analysis=trajectories"]),
]
HEAVY = ["lightning", "torchmetrics", "torchvision", "torch._dynamo"]
SCRIPT = f"""
import sys
import migm
from hydra import compose, initialize_config_dir
from migm.config import roots
from migm.config.building import conf_path, load
import migm.ablations, migm.analyse, migm.calibrate, migm.generate, migm.humaneval, migm.place, migm.plan, migm.report
import migm.side_by_side
neither = roots.OF_TRAINING | roots.OF_SCORES
kinds = [k for k in vars(roots).values() if isinstance(k, type) and getattr(k, "unbuilt", None) == neither]
names = {{k.__name__.removesuffix("Config").lower().replace("sidebyside", "side_by_side"): k for k in kinds}}
del names["images"]  # what generate and side_by_side share
with initialize_config_dir(conf_path(), version_base="1.3"):
    for name, root in names.items():
        load(compose(name, ["+experiment=cifar10_shortcut", "paths.output_dir=" + sys.argv[1]]), root)
sampler = migm.Sampler(migm.load_base("cifar10", device="cpu"), 2, 1, "shortcut")
assert len(sampler(labels=[3], seeds=[0])) == 1
print(sorted(names), [name for name in {HEAVY} if name in sys.modules])
"""


def nowhere(keys: frozenset[str]) -> list[str]:
    return [f"{TARGETS.get(key, key)}._target_=migm.nowhere.Nothing" for key in sorted(keys)]


@pytest.mark.parametrize(("module", "overrides"), RUNS, ids=[module.__name__ for module, _ in RUNS])
def test_what_a_command_does_not_build_is_not_looked_for(module, overrides, call_main, tmp_path):
    shared = ["+experiment=tiny_shortcut", f"paths.output_dir={tmp_path}", "device=cpu", *FEW]
    code, _, err = call_main(module.main, *shared, *overrides, *nowhere(OF_TRAINING | OF_SCORES))
    assert code == 0, err


def test_evaluate_looks_for_metrics_but_not_for_what_trains(call_main, tmp_path):
    shared = ["+experiment=tiny_shortcut", f"paths.output_dir={tmp_path}", "device=cpu", *FEW, "~points.shortcut"]
    code, _, err = call_main(migm.evaluate.main, *shared, "cost=counted", *nowhere(OF_TRAINING))
    assert code == 0, err
    code, _, err = call_main(migm.report.main, *shared, *nowhere(OF_TRAINING | OF_SCORES))
    assert code == 0, err
    with pytest.raises(UserError, match=r"metric\.fd_cifarnet\._target_=migm\.nowhere\.Nothing cannot be imported"):
        load(composed("evaluate", *nowhere(OF_SCORES)), EvaluateConfig)


@pytest.mark.parametrize("key", sorted(OF_TRAINING))
def test_training_looks_for_all_of_it(key):
    (override,) = nowhere(frozenset({key}))
    with pytest.raises(UserError, match="cannot be imported"):
        load(composed("train", override), TrainConfig)
    assert load(composed("generate", override), GenerateConfig).name


def test_lightning_metrics_and_the_compiler_are_not_imported(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    commands = ["ablations", "analyse", "calibrate", "generate", "humaneval", "place", "plan", "report", "side_by_side"]
    assert done.stdout.splitlines()[-1] == f"{commands} []"
