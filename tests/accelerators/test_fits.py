"""Which calibration runs for L2P and TeaCache: the one that was named, the one made here, or the one bundled."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_parts import composed, naming

import migm
from migm.accelerators.accelerator import Accelerator
from migm.accelerators.calibration import LearnedWeights
from migm.accelerators.predictors.forecast import Forecast
from migm.accelerators.predictors.reuse import Reuse
from migm.accelerators.refresh import Uniform
from migm.accelerators.teacache import Accumulate
from migm.bases.inputs import Classes
from migm.bases.weights import read_tensors
from migm.config.building import asset_path, load
from migm.config.earlier import former_settings
from migm.config.roots import EvaluateConfig
from migm.runtime.errors import UserError
from migm.runtime.files import write_sealed
from migm.runtime.identity import identity
from migm.sampling.calibrate import calibrate
from migm.sampling.sampler import Sampler
from migm.sampling.select import Confidence

ASSETS = Path(asset_path())
SHIPPED = {
    "cifar10": ("calibration_n16.safetensors", 16),
    "cifar10_deep": ("cifar10_deep/calibration_n32.safetensors", 32),
    "dimoo_tiny": ("dimoo_tiny/calibration_n16.safetensors", 16),
}
MAKE = "python -m migm.calibrate"


def l2p(files, num_steps=6, **options):
    rule = LearnedWeights(files.get("calibration", files["written"]), num_steps, **places(files), **options)
    return Accelerator(Uniform(2), Forecast(rule), "l2p")


def teacache(files, num_steps=6, **options):
    policy = Accumulate(0.1, calibration=files.get("calibration", files["written"]), **places(files), **options)
    return Accelerator(policy, Reuse("features"), "teacache")


def places(files):
    return {key: files[key] for key in ("written", "bundled")}


METHODS = pytest.mark.parametrize(
    ("make", "key"), [(l2p, "accelerator.predictor.rule.calibration"), (teacache, "accelerator.policy.calibration")]
)


@pytest.fixture(scope="module")
def made(tiny_base, make_sampling):
    """Two calibrations of the tiny base, of different trajectories."""
    sampler = Sampler(tiny_base, make_sampling())
    return [calibrate(sampler, Classes(10), 2, 2, seed=seed) for seed in (1, 2)]


@pytest.fixture
def files(made, tmp_path):
    """Files of both: the one made here, and the bundled one."""
    paths = {"written": tmp_path / "mine" / "calibration.safetensors", "bundled": tmp_path / "bundled.safetensors"}
    for calibration, path in zip(made, paths.values(), strict=True):
        calibration.save(path)
    return paths


@METHODS
def test_the_one_made_here_goes_before_the_bundled_one_and_each_says_where_it_is_from(
    make, key, files, made, tiny_base
):
    own, bundled = (calibration.fingerprint() for calibration in made)
    assert own != bundled
    assert make(files).fingerprint(tiny_base) == own
    assert make(files).origin(tiny_base) == f"{make.__name__}: {files['written']}, calibrated here"
    files["written"].unlink()
    assert make(files).fingerprint(tiny_base) == bundled
    facts = "bundled with the base (2 trajectories of vanilla N = 6, seed 2); to calibrate your own: "
    said = make(files).origin(tiny_base)
    assert said.startswith(f"{make.__name__}: {files['bundled']}, {facts}{MAKE}")
    assert "\n" not in said


@METHODS
def test_nothing_takes_the_place_of_a_named_file(make, key, files, tiny_base, tmp_path):
    named = tmp_path / "none.safetensors"
    with pytest.raises(UserError, match=naming(f"{key}={named}: no such file", MAKE)):
        make({**files, "calibration": named}).fingerprint(tiny_base)


@METHODS
def test_without_any_file_the_line_names_value_key_and_command(make, key, files, tiny_base, make_sampling):
    for path in files.values():
        path.unlink()
    accelerator = make(files)
    Sampler(tiny_base, make_sampling(), accelerator)  # as `bench` and `plan` may make one
    for refused in (accelerator.fingerprint, accelerator.origin):
        with pytest.raises(UserError, match=naming(f"{key}={files['written']}: no such file", MAKE)):
            refused(tiny_base)


@METHODS
def test_the_bundled_one_runs_and_changes_what_is_drawn(make, key, files, tiny_base, make_sampling):
    files["written"].unlink()
    sampler = Sampler(tiny_base, make_sampling(), make(files))
    images = torch.arange(2)
    assert sampler.tokens(images, sampler.noise(0, images)).shape == (2, 16)
    assert sampler.identity["predictor"] == make({**files, "calibration": files["bundled"]}).fingerprint(tiny_base)


@METHODS
@pytest.mark.parametrize("only", ["written", "bundled"])
def test_one_for_another_n_base_or_sampler_is_refused_with_the_command(
    make, key, only, files, tiny_base, make_base, make_sampling
):
    for name in {"written", "bundled"} - {only}:
        files[name].unlink()
    cases = [
        ({"num_steps": 7}, {}, ["calibrated for sampling.num_steps=6, this is 7", MAKE]),
        ({}, {"base": make_base(seed=9)}, [f"calibrated on base {tiny_base.fingerprint()}, this one is", MAKE]),
        ({}, {"sampling": make_sampling(select=Confidence(9.0))}, ["temperature=9", MAKE, "sampling=any"]),
    ]
    for options, parts, words in cases:
        n = options.get("num_steps", 6)
        sampling = parts.get("sampling", make_sampling(num_steps=n))
        with pytest.raises(UserError, match=naming(f"{key}={files[only]} was", *words)) as refused:
            Sampler(parts.get("base", tiny_base), sampling, make(files, n))
        assert "\n" not in str(refused.value)
    other = make_sampling(select=Confidence(9.0))
    assert Sampler(tiny_base, other, make(files, sampling="any")).identity["predictor"]


@METHODS
def test_a_file_of_an_earlier_version_names_no_sampler_and_passes(make, key, files, tiny_base, make_sampling):
    tensors, about = read_tensors(files["written"], "file")
    assert "Confidence" in about["sampling"]
    write_sealed(tensors, files["written"], {"format": about["format"], "base": about["base"]})
    assert Sampler(tiny_base, make_sampling(select=Confidence(9.0)), make(files)).identity["predictor"]


def test_one_of_the_plain_base_holds_for_its_other_linears(files, tiny_base, make_base):
    quantised: Any = SimpleNamespace(fingerprint=lambda: "other", plain_fingerprint=tiny_base.fingerprint)
    assert l2p(files).fingerprint(quantised) == l2p(files).fingerprint(tiny_base)


@METHODS
def test_one_file_serves_all_images_of_a_run_whatever_is_calibrated_meanwhile(make, key, files, made, tiny_base):
    content = files["written"].read_bytes()
    files["written"].unlink()
    begun = make(files)
    assert begun.fingerprint(tiny_base) == made[1].fingerprint()
    files["written"].write_bytes(content)
    assert begun.fingerprint(tiny_base) == made[1].fingerprint()
    assert make(files).fingerprint(tiny_base) == made[0].fingerprint()


@METHODS
def test_one_that_was_asked_too_early_finds_what_is_calibrated_later(make, key, files, made, tiny_base):
    content = files["written"].read_bytes()
    for path in files.values():
        path.unlink()
    early = make(files)
    with pytest.raises(UserError, match="no such file"):
        early.fingerprint(tiny_base)
    files["written"].write_bytes(content)
    assert early.fingerprint(tiny_base) == made[0].fingerprint()


@METHODS
def test_a_damaged_file_is_refused_and_not_passed_over(make, key, files, tiny_base):
    files["written"].write_bytes(files["written"].read_bytes()[:-9])
    with pytest.raises(UserError, match=naming(f"{key}={files['written']}", "is not a file of migm.calibrate")):
        make(files).fingerprint(tiny_base)


def test_where_files_are_does_not_tell_records_apart(files):
    assert identity(LearnedWeights(**places(files), calibration="a", num_steps=6)) == "LearnedWeights(num_steps=6)"
    assert identity(teacache(files, sampling="any").policy) == "Accumulate(delta=0.1)"
    node = {"_target_": "a.B", "policy": {"_target_": "a.C", "delta": 0.3, "calibration": "a"}}
    more = {**node, "policy": {**node["policy"], "written": "a", "bundled": None, "sampling": "same"}}
    assert former_settings(more) == former_settings(node)


@pytest.mark.parametrize("accelerator", ["l2p", "teacache", "teacache_first_block", "shortcut_adaptive"])
@pytest.mark.parametrize(("base", "bundled"), [*((base, file) for base, (file, _) in SHIPPED.items()), ("tiny", None)])
def test_the_bundled_file_is_beside_the_weights_of_the_base(accelerator, base, bundled):
    config = load(composed("evaluate", f"base={base}", f"accelerator={accelerator}", "name=mine"), EvaluateConfig)
    made = config.accelerator
    part = made["predictor"]["rule"] if accelerator == "l2p" else made["policy"]
    n = config.sampling["num_steps"]
    assert part["calibration"] == part["written"] == f"outputs/mine/calibration_n{n}.safetensors"
    assert part["bundled"] == (bundled and str(ASSETS / bundled))


# --- the files that ship ---


@pytest.fixture(scope="module", params=SHIPPED)
def shipped(request):
    """A bundled base, the name of its calibration, and its N."""
    file, n = SHIPPED[request.param]
    base = migm.load_base(request.param, device="cpu", dtype="float32")
    return SimpleNamespace(name=request.param, base=base, file=ASSETS / file, n=n)


def test_a_shipped_file_is_for_both_precisions_of_its_base_and_says_how_it_was_made(shipped):
    _, about = read_tensors(shipped.file, "assets")
    other = migm.load_base(shipped.name, device="cpu", dtype="bfloat16")
    assert set(about["base"].split(",")) == {shipped.base.fingerprint(), other.fingerprint()}
    assert about["sampling"] == migm.Sampler(shipped.base).sampling.identity
    card = json.loads(about["card"])
    assert f"trajectories of vanilla N = {shipped.n}, seed 7702" in card["data"]
    assert {"data", "inputs", "made_with"} == set(card)


@pytest.mark.parametrize("name", ["l2p", "teacache"])
def test_methods_run_by_the_shipped_file_at_once_and_record_it(shipped, name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    b = 4 if name == "l2p" else None
    sampler = migm.Sampler(shipped.base, num_full_steps=b, accelerator=name)
    (said,) = capfd.readouterr().out.splitlines()
    assert said.startswith(f"{name}: {shipped.file}, bundled with the base (")
    named = LearnedWeights(shipped.file, shipped.n).fingerprint(shipped.base)
    assert sampler.identity["predictor"] == named


def test_another_n_than_the_shipped_ones_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = migm.load_base("cifar10", device="cpu")
    with pytest.raises(UserError, match=naming("calibration_n8.safetensors: no such file", MAKE, "num_steps=8")):
        migm.Sampler(base, 8, 4, "l2p")
    with pytest.raises(UserError, match=naming("was calibrated for Sampling(", "guidance_scale=9", MAKE)):
        migm.Sampler(base, 16, 4, "l2p", overrides={"sampling.guidance.guidance_scale": 9.0})
