"""Evaluation sets ask for what their protocol says, are known by a hash, and what they need is named."""

from pathlib import Path

import pytest
import torch
from tiny_parts import composed

import migm.metrics.files
import migm.needs
from migm.bases.inputs import Classes, Prompts
from migm.config.building import build, load
from migm.config.roots import EvaluateConfig
from migm.evaluation.evalset import EvalSet


def evalset(*overrides: str) -> EvalSet:
    return build(load(composed("evaluate", *overrides), EvaluateConfig).evalset)


@pytest.mark.parametrize(("name", "count", "classes"), [("imagenet", 50_000, 1000), ("cifar10_5k", 5000, 10)])
def test_class_sets_are_balanced(name, count, classes):
    chosen = evalset(f"evalset={name}")
    labels = torch.cat([labels for _, labels in chosen.batches()])
    assert len(labels) == count
    assert labels.bincount().tolist() == [count // classes] * classes


def test_dpg_asks_for_each_prompt_once(tmp_path):
    folder = tmp_path / "dpg_bench" / "prompts"
    folder.mkdir(parents=True)
    for i in range(1065):
        (folder / f"{i}.txt").write_text(f"prompt {i}")
    chosen = evalset("evalset=dpg", f"paths.evaluation={tmp_path}")
    prompts = [prompt for _, inputs in chosen.batches() for prompt in inputs]
    assert sorted(prompts) == sorted(f"prompt {i}" for i in range(1065))


def made(inputs, count=20, batch_size=8, seeds=(1,)) -> str:
    return EvalSet(count, inputs, seeds, batch_size).fingerprint()


def test_a_set_is_known_by_what_it_asks_for_alone(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\nthree")
    (tmp_path / "b.txt").write_text("one\nthree\ntwo")
    same = {made(Classes(10)), made(Classes(10), batch_size=7), made(Classes(10), seeds=(1, 2, 3))}
    assert len(same) == 1
    others = [Classes(10), Classes(5), Prompts(tmp_path / "a.txt"), Prompts(tmp_path / "b.txt")]
    assert len({*map(made, others), made(Classes(10), count=21)}) == 5


@pytest.fixture
def needed(call_main):
    """What `python -m migm.needs` prints."""
    return lambda *overrides: call_main(migm.needs.main, *overrides)[1]


def test_what_is_missing_is_named_with_its_place_and_source(needed, tmp_path):
    (tmp_path / "ImageReward.pt").write_bytes(b"")
    names = "fid_adm,fid_val50k,fid_clean,kid,clip_score,image_reward,unipercept"
    fixed = [f"paths.evaluation={tmp_path}", f"paths.output_dir={tmp_path}", f"hydra.run.dir={tmp_path}"]
    said = needed(f"metric=[{names}]", "evalset=dpg", *fixed)
    lines = said.splitlines()
    assert f"present  {tmp_path}/ImageReward.pt  (image_reward)" in lines
    after = dict(zip(lines, [*lines[1:], ""], strict=True))
    weights = f"missing  {tmp_path}/weights-inception-2015-12-05-6726825d.pth  (fid_adm, fid_val50k, fid_clean, kid)"
    assert "github.com/toshas/torch-fidelity" in after[weights]
    assert "VIRTUAL_imagenet512.npz" in after[f"missing  {tmp_path}/VIRTUAL_imagenet512.npz  (fid_adm)"]
    made_here = after[f"missing  {tmp_path}/imagenet512_val50k.npz  (fid_val50k)"]
    assert "python -m migm.metric_reference metric=[fid_val50k] size=512" in made_here
    assert "ILSVRC2012" in made_here
    assert "ELLA" in after[f"missing  {tmp_path}/dpg_bench/prompts  (evalset)"]
    assert "python -m migm.install_scorers" in after[f"missing  {tmp_path}/scorers  (unipercept)"]


def test_the_bundled_metrics_need_nothing(needed, tmp_path):
    said = needed(f"paths.output_dir={tmp_path}", f"hydra.run.dir={tmp_path}")
    assert said.startswith("present")
    assert "missing" not in said


def test_every_metric_says_what_it_needs():
    names = sorted(
        path.stem for path in (Path(migm.needs.conf_path()) / "metric").glob("*.yaml") if path.stem != "none"
    )
    config = load(composed("evaluate", f"metric=[{','.join(names)}]"), EvaluateConfig)
    users = {user for users in migm.metrics.files.needs(config.metric, config.evalset).values() for user in users}
    assert users == set(names)
