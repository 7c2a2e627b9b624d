"""Shortcut files: nothing is lost, and a file that does not belong here is refused with its name."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from migm.bases.base import Control
from migm.runtime.errors import UserError
from migm.shortcuts.checkpoint import load_shortcut, save_shortcut
from migm.shortcuts.maskgit import MaskGITShortcut

KEY = "accelerator.predictor.weights"


@pytest.fixture
def file(tmp_path, make_shortcut):
    path = tmp_path / "new folder" / "shortcut.safetensors"
    save_shortcut(make_shortcut().float(), "base01", path)
    return path


@pytest.mark.parametrize(
    "changes",
    [{}, {"bottleneck_ratio": 4, "depth": 2, "time": False}, {"cross_attention": False, "dropout": 0.1}],
)
def test_save_and_load_return_the_same_network(tmp_path, make_shortcut, changes):
    shortcut = make_shortcut(**changes).float().train().requires_grad_(True)
    path = tmp_path / "shortcut.safetensors"
    save_shortcut(shortcut, "base01", path)
    loaded, _ = load_shortcut(path, "base01", KEY)
    assert isinstance(loaded, MaskGITShortcut)
    assert loaded.config == shortcut.config
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    new = Control(torch.randn(2, 3, 48), torch.arange(3).expand(2, -1))
    inputs = torch.randn(2, 17, 48), new, torch.rand(2)
    assert torch.equal(loaded(*inputs), shortcut.eval()(*inputs))


def test_the_fingerprint_follows_weights_and_configuration(tmp_path, make_shortcut):
    def fingerprint(shortcut):
        save_shortcut(shortcut.float(), "base01", tmp_path / "x.safetensors")
        return load_shortcut(tmp_path / "x.safetensors", "base01", KEY)[1]

    one = fingerprint(make_shortcut())
    assert fingerprint(make_shortcut()) == one
    assert len({one, fingerprint(make_shortcut(seed=2)), fingerprint(make_shortcut(dropout=0.1))}) == 3


def test_saving_replaces_the_file_and_leaves_no_other(file, make_shortcut):
    save_shortcut(make_shortcut(seed=3).float(), "base02", file)
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    load_shortcut(file, "base02", KEY)


def test_a_shortcut_of_another_base_is_refused(file):
    with pytest.raises(UserError) as caught:
        load_shortcut(file, "base02", KEY)
    message = str(caught.value)
    assert message.startswith(f"{KEY}={file} ")
    assert "base01" in message
    assert "base02" in message


def test_a_file_for_several_precisions_of_a_base_fits_each_and_carries_its_card(tmp_path, make_shortcut):
    path = tmp_path / "shortcut.safetensors"
    save_shortcut(make_shortcut().float(), ["base01", "base02"], path, {"trained": "a while"})
    found = [load_shortcut(path, base, KEY)[1] for base in ("base01", "base02")]
    assert found[0] == found[1]
    load_shortcut(path, "base03", KEY, "base02")
    for other in ("base03", "base0", "base01,base02"):
        with pytest.raises(UserError, match="trained for base base01,base02"):
            load_shortcut(path, other, KEY)
    with safe_open(path, "pt") as opened:
        assert opened.metadata()["card"] == '{"trained": "a while"}'


def test_a_changed_card_is_damage(tmp_path, make_shortcut):
    path = tmp_path / "shortcut.safetensors"
    save_shortcut(make_shortcut().float(), "base01", path, {"trained": "a while"})
    path.write_bytes(path.read_bytes().replace(b"a while", b"a whale"))
    with pytest.raises(UserError, match="is damaged"):
        load_shortcut(path, "base01", KEY)


def test_a_file_of_another_kind_is_refused(tmp_path, make_base):
    path = tmp_path / "base.safetensors"
    save_file(make_base().transformer.state_dict(), path)
    with pytest.raises(UserError, match=rf"{KEY}=.*base\.safetensors is no migm-shortcut/1 file"):
        load_shortcut(path, "base01", KEY)
    save_file({}, path, {"format": "migm-traj/1"})
    with pytest.raises(UserError, match=r"migm-traj/1"):
        load_shortcut(path, "base01", KEY)


def test_a_damaged_or_missing_file_is_refused(file):
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"{KEY}=.*not a complete safetensors file"):
        load_shortcut(file, "base01", KEY)
    file.unlink()
    for path in (file, None):
        with pytest.raises(FileNotFoundError, match=rf"{KEY}=.*no such file"):
            load_shortcut(path, "base01", KEY)


def test_a_file_that_lacks_a_tensor_of_its_description_is_refused(file):
    with safe_open(file, "pt") as opened:
        metadata = {key: value for key, value in opened.metadata().items() if key != "hash"}
    tensors = load_file(file)
    del tensors["proj_out.bias"]
    save_file(tensors, file, metadata)
    with pytest.raises(UserError, match=rf"{KEY}=.*proj_out\.bias"):
        load_shortcut(file, "base01", KEY)


@pytest.mark.parametrize("changes", [{}, {"bottleneck_ratio": 1, "depth": 2}, {"bottleneck_ratio": 4, "time": False}])
def test_the_shape_of_a_published_checkpoint_is_read_from_its_names(tmp_path, make_shortcut, changes):
    shortcut = make_shortcut(**changes).float()
    torch.save(shortcut.state_dict(), tmp_path / "published.pth")
    loaded, fingerprint = load_shortcut(tmp_path / "published.pth", "any base", KEY, num_heads=4)
    assert loaded.config == shortcut.config
    assert fingerprint == load_shortcut(tmp_path / "published.pth", "another", KEY, num_heads=4)[1]
    assert all(torch.equal(value, shortcut.state_dict()[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("blocks.0.self_attn.norm.bias"), "lacks blocks.0.self_attn.norm.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "has extra"),
        (lambda t: t.pop("last_layer.1.weight"), "is no state dict of a shortcut"),
        (lambda t: [t.pop(name) for name in list(t) if name.startswith("blocks")], "is no state dict of a shortcut"),
    ],
)
def test_a_published_checkpoint_that_does_not_fit_is_refused(tmp_path, make_shortcut, change, words):
    tensors = make_shortcut().float().state_dict()
    change(tensors)
    torch.save(tensors, tmp_path / "published.pth")
    with pytest.raises(UserError, match=words):
        load_shortcut(tmp_path / "published.pth", "base01", KEY, num_heads=4)
