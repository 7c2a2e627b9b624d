"""The builder of candidates, and what is left out of a search."""

import pytest
from hydra import compose, initialize_config_dir

from migm.config.building import build, conf_path, load
from migm.config.candidates import CandidateParts
from migm.config.roots import TuneConfig
from migm.tuning.space import Builder, Candidate, methods_here, sampler_values


@pytest.fixture(scope="module")
def parts(assets):
    with initialize_config_dir(conf_path(), version_base="1.3"):
        cfg = compose("tune", ["base=tiny", "accelerator=reuse", "device=cpu", f"paths.assets={assets}"])
        config = load(cfg, TuneConfig)
        yield Builder(CandidateParts(cfg, config), build(config.base)), config


def test_candidates_do_not_change_each_other_or_the_config(parts):
    builder, config = parts
    changed = Candidate("reuse", 6, 3, {"sampling.select.temperature": 7.0, "accelerator.policy.rule": "paper"})
    first = builder.sampler(changed)
    plain = builder.sampler(Candidate("reuse", 6, 3))
    again = builder.sampler(changed)
    assert first.identity == again.identity
    assert plain.sampling.select.temperature == config.sampling["select"]["temperature"] != 7.0
    assert plain.accelerator.policy.rule == "reference"
    assert first.accelerator.policy.num_full_steps == first.num_full_steps == 3
    assert builder.sampler(builder.vanilla()).num_steps == config.sampling["num_steps"]


def test_a_label_of_a_long_list_is_short_and_tells_lists_apart():
    lists = [list(range(n)) for n in (5, 60, 61)]
    labels = [Candidate("table", 64, None, {"accelerator.policy.steps": steps}).variant for steps in lists]
    assert labels[0] == "steps=[0,1,2,3,4]"
    assert len(set(labels)) == 3
    assert max(map(len, labels)) < 80


def test_what_cannot_run_is_left_out_with_the_reason(parts):
    builder, config = parts
    found, lines = methods_here(builder, config)
    names = [method.name for method in found]
    assert "taylorseer" in names
    assert not {"shortcut", "l2p"} & set(names)
    assert any(line.startswith("l2p is left out: ") and "migm.calibrate" in line for line in lines)
    assert any(line.startswith("shortcut is left out: ") and "migm.train" in line for line in lines)


def test_a_bundled_calibration_counts_at_its_own_n_whatever_the_sampler(parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = compose("tune", ["base=cifar10", "device=cpu"])
    config = load(cfg, TuneConfig)
    config.methods = {name: config.methods[name] for name in ("vanilla", "l2p")}
    builder = Builder(CandidateParts(cfg, config), build(config.base))
    found, (line,) = methods_here(builder, config)
    assert {method.name: method.steps for method in found}["l2p"] == (16,)
    assert line.startswith("l2p is left out at N other than [16]: ")
    own = {f"accelerator.{key}": values[0] for key, values in found[1].choices.items()}
    sampler = builder.sampler(Candidate("l2p", 16, 4, {**own, "sampling.select.temperature": 7.0}))
    assert sampler.identity["predictor"]


def test_keys_that_the_sampling_lacks_are_left_out_and_said(parts):
    builder, config = parts
    values, lines = sampler_values(builder.parts)
    assert set(values) == {"select.temperature", "guidance.guidance_scale", "draw.inverse_temperature"}
    assert lines == []
    del config.sampling["draw"]["inverse_temperature"]
    config.sampling["guidance"]["guidance_scale"] = 0
    values, lines = sampler_values(builder.parts)
    assert set(values) == {"select.temperature"}
    assert len(lines) == 2
