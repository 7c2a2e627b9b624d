"""Files of DiMOO shortcuts: class and sizes come back, from ours and from published ones."""

import json
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_parts import naming

from migm.bases.base import Control
from migm.runtime.errors import UserError
from migm.shortcuts.checkpoint import load_shortcut, save_shortcut
from migm.shortcuts.dimoo import DiMOOShortcut
from migm.shortcuts.maskgit import MaskGITShortcut

KEY = "accelerator.predictor.weights"
VARIANTS = [
    {},
    {"bottleneck_ratio": 1, "depth": 2},
    {"bottleneck_ratio": 3, "time": False},
    {"cross_attention": False},
    {"prompt": False},
]
every_variant = pytest.mark.parametrize("changes", VARIANTS, ids=str)


def make(**changes):
    """A random network of other sizes than any default."""
    return DiMOOShortcut(**{"channels": 48, "num_heads": 4, "mlp_channels": 40, **changes}).requires_grad_(False)


@every_variant
def test_a_file_holds_class_and_sizes(tmp_path, changes):
    net, path = make(**changes), tmp_path / "shortcut.safetensors"
    save_shortcut(net, "base01", path)
    loaded, fingerprint = load_shortcut(path, "base01", KEY, num_heads=4, prompt=None)
    assert isinstance(loaded, DiMOOShortcut)
    assert loaded.config == net.config
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    new = Control(torch.randn(2, 5, 48), torch.tensor([[0, 1, 3, 4, 6], [0, 1, 2, 5, 6]]), prompt=2)
    inputs = torch.randn(2, 11, 48), new, torch.rand(2)
    assert torch.equal(loaded(*inputs), net(*inputs))
    assert load_shortcut(path, "base01", KEY)[1] == fingerprint


@every_variant
def test_a_published_checkpoint_is_told_from_maskgits_by_its_names(tmp_path, changes):
    net = make(**changes, rope_theta=1e4)
    torch.save(net.state_dict(), tmp_path / "published.pth")
    given = {"num_heads": 4, "rope_theta": 1e4, "prompt": changes.get("prompt")}
    loaded, _ = load_shortcut(tmp_path / "published.pth", "any base", KEY, **given)
    assert isinstance(loaded, DiMOOShortcut)
    assert loaded.config == net.config
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_untold_arguments_of_a_published_checkpoint_are_the_networks_own(tmp_path):
    """Each class has another default of heads."""
    for net in (DiMOOShortcut(128, mlp_channels=8), MaskGITShortcut(128)):
        torch.save(net.state_dict(), tmp_path / "published.pth")
        loaded, _ = load_shortcut(tmp_path / "published.pth", "any base", KEY, num_heads=None)
        assert loaded.config == net.config
        assert type(loaded) is type(net)


def test_a_file_that_does_not_tell_its_class_is_maskgits(tmp_path):
    path = tmp_path / "shortcut.safetensors"

    def rewrite(**changes):
        with safe_open(path, "pt") as file:
            metadata = {**file.metadata(), **changes, "hash": ""}  # files of earlier versions had none
        save_file(load_file(path), path, {name: text for name, text in metadata.items() if text})

    save_shortcut(MaskGITShortcut(48, num_heads=4), "base01", path)
    rewrite(kind="")
    assert isinstance(load_shortcut(path, "base01", KEY)[0], MaskGITShortcut)
    rewrite(kind="MaskGITShortcut")
    assert isinstance(load_shortcut(path, "base01", KEY)[0], MaskGITShortcut)
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
    rewrite(config=json.dumps({**config, "unknown": 1}))
    with pytest.raises(UserError, match=naming(f"{KEY}={path}", "MaskGITShortcut of another version", "unknown")):
        load_shortcut(path, "base01", KEY)


@pytest.mark.parametrize(
    "kind",
    ["Elsewhere", "os.system", "torch.nn.Linear", "migm.shortcuts.parts.TimeEmbedder", "not_imported.Network", "", "."],
)
def test_a_file_that_names_another_class_is_refused_and_nothing_is_imported(tmp_path, monkeypatch, kind):
    (tmp_path / "not_imported.py").write_text("raise SystemExit(1)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "shortcut.safetensors"
    save_shortcut(MaskGITShortcut(48, num_heads=4), "base01", path)
    with safe_open(path, "pt") as file:
        metadata = {name: text for name, text in file.metadata().items() if name != "hash"}
    save_file(load_file(path), path, {**metadata, "kind": kind})
    with pytest.raises(UserError, match=naming(f"{KEY}={path} holds a {kind}", "shortcut=")) as caught:
        load_shortcut(path, "base01", KEY)
    assert "\n" not in str(caught.value)
    assert "MaskGITShortcut" in str(caught.value)
    assert "not_imported" not in sys.modules


@pytest.mark.parametrize("published", [True, False])
def test_arguments_that_contradict_a_file_are_refused(tmp_path, make_shortcut, published):
    path = tmp_path / ("published.pth" if published else "shortcut.safetensors")
    net = make_shortcut().float()
    torch.save(net.state_dict(), path) if published else save_shortcut(net, "base01", path)
    with pytest.raises(UserError, match=naming(f"{KEY}={path}", "MaskGITShortcut with no prompt", "prompt=False")):
        load_shortcut(path, "base01", KEY, num_heads=4, prompt=False)
    if not published:
        with pytest.raises(UserError, match=naming(f"{KEY}={path}", "num_heads=4", "num_heads=2")):
            load_shortcut(path, "base01", KEY, num_heads=2)
