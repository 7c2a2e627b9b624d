"""Which file of a shortcut runs: the one that was named, the one trained here, or the one bundled with the base."""

import pytest
from tiny_parts import composed, naming

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Uniform
from migm.config.building import asset_path, load
from migm.config.earlier import former_settings
from migm.config.roots import EvaluateConfig
from migm.runtime.errors import UserError
from migm.runtime.identity import identity
from migm.shortcuts.checkpoint import save_shortcut
from migm.shortcuts.choosing import KEY

CARD = {"data": "eight photos", "trained": "5 steps of 2 pairs (w 1); MSE"}


@pytest.fixture
def files(tmp_path, make_shortcut, tiny_base):
    """Three files of different weights for the tiny base, by the parameter that takes each."""
    paths = {name: tmp_path / name / "shortcut.safetensors" for name in ("weights", "trained", "bundled")}
    for seed, (name, path) in enumerate(paths.items()):
        network, card = make_shortcut(seed).float(), CARD if name == "bundled" else None
        save_shortcut(network, ["another", tiny_base.fingerprint()], path, card)
    return paths


def hashes(base, files):
    return {name: Shortcut(path).fingerprint(base) for name, path in files.items()}


def test_a_named_file_wins_and_nothing_takes_its_place(files, tiny_base):
    wanted = hashes(tiny_base, files)
    assert len(set(wanted.values())) == 3
    assert Shortcut(**files).fingerprint(tiny_base) == wanted["weights"]
    files["weights"].unlink()
    with pytest.raises(FileNotFoundError, match=naming(f"{KEY}={files['weights']}: no such file")):
        Shortcut(**files).fingerprint(tiny_base)


def test_the_trained_file_comes_before_the_bundled_one_and_each_says_where_it_is_from(files, tiny_base):
    wanted = hashes(tiny_base, files)
    del files["weights"]

    def chosen():
        accelerator = Accelerator(Uniform(2), Shortcut(**files), "mine")
        return accelerator.fingerprint(tiny_base), accelerator.origin(tiny_base)

    assert chosen() == (wanted["trained"], f"mine: {files['trained']}, trained here")
    files["trained"].unlink()
    found, said = chosen()
    assert found == wanted["bundled"]
    facts = "bundled with the base (5 steps of 2 pairs, eight photos); to train your own: "
    assert said.startswith(f"mine: {files['bundled']}, {facts}")
    assert "\n" not in said


def test_without_a_file_the_line_names_value_key_and_command(files, tiny_base, make_base):
    del files["weights"]
    files["trained"].unlink()
    asked = f"{KEY}={files['trained']}: no such file"
    with pytest.raises(FileNotFoundError, match=naming(asked, f"{files['bundled']} is for another base", "to train")):
        Shortcut(**files).fingerprint(make_base(seed=1))
    files["bundled"].unlink()
    for predictor in (Shortcut(**files), Shortcut(trained=files["trained"])):
        with pytest.raises(FileNotFoundError, match=naming(f"{asked}; to train one: ", "train")):
            predictor.origin(tiny_base)


def test_a_damaged_file_is_refused_and_not_passed_over(files, tiny_base):
    del files["weights"]
    for name in ("trained", "bundled"):
        files[name].write_bytes(files[name].read_bytes()[:-9])
        with pytest.raises(UserError, match=naming(f"{KEY}={files[name]}", "not a complete")):
            Shortcut(**files).fingerprint(tiny_base)
        files[name].unlink()


def test_one_file_makes_all_images_of_a_predictor_whatever_is_trained_meanwhile(files, tiny_base):
    wanted = hashes(tiny_base, files)
    trained = files["trained"].read_bytes()
    files["trained"].unlink()
    begun = Shortcut(trained=files["trained"], bundled=files["bundled"])
    assert begun.fingerprint(tiny_base) == wanted["bundled"]
    files["trained"].write_bytes(trained)
    assert begun.fingerprint(tiny_base) == wanted["bundled"]
    assert Shortcut(trained=files["trained"], bundled=files["bundled"]).fingerprint(tiny_base) == wanted["trained"]


def test_a_predictor_that_was_asked_too_early_finds_what_a_training_writes(files, tiny_base):
    trained = files["trained"].read_bytes()
    files["trained"].unlink()
    early = Shortcut(trained=files["trained"])
    with pytest.raises(FileNotFoundError):
        early.fingerprint(tiny_base)
    files["trained"].write_bytes(trained)
    assert early.fingerprint(tiny_base)


def test_where_files_are_does_not_tell_records_apart(files):
    assert identity(Shortcut(**files)) == identity(Shortcut()) == "Shortcut()"
    node = {"_target_": "a.B", "predictor": {"_target_": "a.C", "linear": "plain"}}
    more = {**node, "predictor": {**node["predictor"], "weights": "a", "trained": "b", "bundled": None}}
    assert former_settings(more) == former_settings(node)


@pytest.mark.parametrize(
    ("chosen", "bundled"),
    [
        (["base=cifar10"], f"{asset_path()}/shortcut.safetensors"),
        (["base=cifar10_deep"], f"{asset_path()}/cifar10_deep/shortcut.safetensors"),
        (["base=dimoo_tiny"], f"{asset_path()}/dimoo_tiny/shortcut.safetensors"),  # its weights are a folder
        (["base=cifar10", "paths.assets=elsewhere"], "elsewhere/shortcut.safetensors"),
        (["base=cifar10", "base.weights=hf://owner/repository/base.pth"], None),
        (["base=tiny"], None),
    ],
)
@pytest.mark.parametrize("accelerator", ["shortcut", "shortcut_interval", "shortcut_adaptive"])
def test_the_bundled_file_is_beside_the_weights_of_the_base(accelerator, chosen, bundled):
    config = load(composed("evaluate", *chosen, f"accelerator={accelerator}", "name=mine"), EvaluateConfig)
    predictor = config.accelerator["predictor"]
    assert predictor["weights"] is None
    assert predictor["trained"] == "outputs/mine/shortcut.safetensors"
    assert predictor["bundled"] == bundled


def test_an_ablation_has_no_other_file():
    config = load(composed("evaluate", "base=cifar10_deep", "accelerator=no_cross_attention"), EvaluateConfig)
    predictor = config.accelerator["predictor"]
    assert predictor["weights"] == "outputs/migm_no_cross_attention/shortcut.safetensors"
    assert not {"trained", "bundled"} & set(predictor)
