"""A value that nothing uses is no reason to refuse a run, and points given on the command line are the only ones."""

import copy
import re
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from tiny_parts import composed, naming, tiny

import migm.generate
import migm.plan
from migm.config.building import build, load, with_own_points
from migm.config.points import point, points
from migm.config.roots import EvaluateConfig
from migm.runtime.errors import UserError
from migm.sampling.sampler import Sampler


@cache
def tree() -> DictConfig:
    return composed("evaluate", "+experiment=tiny_shortcut", "device=cpu")


def of(accelerator: str, num_steps: int, num_full_steps: int) -> DictConfig:
    """The config with another accelerator, N and B."""
    steps = [f"sampling.num_steps={num_steps}", f"sampling.num_full_steps={num_full_steps}"]
    return composed("evaluate", "+experiment=tiny_shortcut", "device=cpu", f"accelerator={accelerator}", *steps)


def chosen(accelerator: str) -> Any:
    return load(of(accelerator, 2, 4), EvaluateConfig)


@pytest.mark.parametrize("accelerator", ["vanilla", "taylorseer", "dllm_cache", "ml_cache", "teacache"])
def test_a_policy_that_has_no_b_is_not_refused_for_it(accelerator):
    assert point(chosen(accelerator)).sampling.num_steps == 2


@pytest.mark.parametrize("accelerator", ["shortcut", "reuse", "l2p", "recap"])
def test_a_policy_that_has_a_b_is_refused_before_anything_runs(accelerator):
    config = chosen(accelerator)
    refused = naming("sampling.num_full_steps=4", "sampling.num_steps=2")
    with pytest.raises(UserError, match=refused):
        point(config)
    cfg = copy.deepcopy(tree())
    cfg.points = {accelerator: [[2, 4]]}
    with pytest.raises(UserError, match=refused):
        points(cfg, load(cfg, EvaluateConfig))


def test_a_table_that_does_not_fit_n_is_refused_before_anything_runs():
    cfg = of("reuse", 6, 2)
    cfg.accelerator.policy = OmegaConf.create({"_target_": "migm.accelerators.refresh.Table", "steps": [0, 6]})
    with pytest.raises(UserError, match=naming("accelerator.policy.steps=[0, 6] goes beyond the last step 5")):
        point(load(cfg, EvaluateConfig))


def test_trajectories_are_those_of_the_base_whatever_b_is(tmp_path):
    config = tiny(tmp_path, "sampling.num_steps=2", "sampling.num_full_steps=4")
    build(config.data).attach(Sampler(build(config.base), build(config.sampling)), 0)


def test_vanilla_images_of_few_steps_need_no_b(call_main, tmp_path):
    made = ["base=tiny", "accelerator=vanilla", "sampling.num_steps=1", "labels=[3]", "seeds=[0]", "device=cpu"]
    code, _, err = call_main(migm.generate.main, *made, f"paths.output_dir={tmp_path}")
    assert code == 0, err
    assert (tmp_path / "migm" / "images.png").is_file()


@pytest.fixture
def job(monkeypatch):
    """The points of a command's job with these overrides, its config being checked as there."""

    def run(*overrides: str) -> Any:
        cfg = copy.deepcopy(tree())
        ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(list(overrides)), cfg)
        given = SimpleNamespace(mode=None, overrides=SimpleNamespace(task=["+experiment=tiny_shortcut", *overrides]))
        monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
        monkeypatch.setattr(HydraConfig, "get", lambda: given)
        return load(cfg, EvaluateConfig).points

    return run


VANILLA, REUSE, SHORTCUT = {"vanilla": [2, 6]}, {"reuse": [[6, 2]]}, {"shortcut": [[6, 2]]}
EXPERIMENT = {**VANILLA, **REUSE, **SHORTCUT}


@pytest.mark.parametrize(
    ("overrides", "points"),
    [
        ([], EXPERIMENT),
        (["points={vanilla: [4]}"], {"vanilla": [4]}),
        (["++points={vanilla: [4]}"], {"vanilla": [4]}),
        (["points={l2p: [[6,3]]}"], {"l2p": [[6, 3]]}),
        (["points={reuse: [[6,3]], vanilla: [4]}"], {"reuse": [[6, 3]], "vanilla": [4]}),
        (["points={}"], {}),
        (["points=null"], None),
        (["points.vanilla=[4]"], {**EXPERIMENT, "vanilla": [4]}),
        (["points.l2p=[[6,3]]"], {**EXPERIMENT, "l2p": [[6, 3]]}),
        (["+points={l2p: [[6,3]]}"], {**EXPERIMENT, "l2p": [[6, 3]]}),
        (["~points.shortcut"], {**VANILLA, **REUSE}),
        (["points={vanilla: [4]}", "points.reuse=[[6,3]]"], {"vanilla": [4], "reuse": [[6, 3]]}),
        (["points={vanilla: [4]}", "+points={l2p: [[6,3]]}"], {"vanilla": [4], "l2p": [[6, 3]]}),
        (["points={vanilla: [4], reuse: [[6,3]]}", "~points.vanilla"], {"reuse": [[6, 3]]}),
        (["points={vanilla: [4]}", "points={reuse: [[6,3]]}"], {"reuse": [[6, 3]]}),
        (["points.reuse=[[6,3]]", "points={vanilla: [4]}"], {"vanilla": [4]}),
        (["~points", "+points={vanilla: [4]}"], {"vanilla": [4]}),
        (["points={vanilla: [4]}", "~points"], {}),
        (["points=null", "points={vanilla: [4]}"], {"vanilla": [4]}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_points_of_the_command_line_take_the_place_of_the_experiments(job, overrides, points):
    found = job(*overrides)
    assert found == points
    assert list(found or []) == list(points or [])  # the first is what others are compared with


def test_a_config_that_was_composed_outside_a_command_is_taken_as_it_is():
    assert with_own_points(tree()) is tree()


def rows(out: str) -> list[str]:
    """The points in the table of `migm.plan`."""
    return re.findall(r"(?:vanilla|reuse|shortcut) [\d,]+", out)


def test_a_command_has_the_points_that_it_was_given(call_main, tmp_path):
    place = ["+experiment=tiny_shortcut", f"paths.output_dir={tmp_path}"]
    code, out, err = call_main(migm.plan.main, *place, "points={vanilla: [4]}")
    assert code == 0, err
    assert rows(out) == ["vanilla 4"]


@pytest.mark.slow
def test_each_trial_of_a_sweep_has_the_points_that_it_was_given(call_main, tmp_path):
    place = ["-m", "+experiment=tiny_shortcut", f"paths.output_dir={tmp_path}"]
    code, out, err = call_main(migm.plan.main, *place, "points={vanilla: [4]},{reuse: [[6,3]]}")
    assert code == 0, err
    assert rows(out) == ["vanilla 4", "reuse 6,3"]
