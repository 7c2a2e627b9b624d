"""Weights are loaded strictly: a file that does not fit is refused with its name, its key and the tensor."""

import pytest
import torch
from safetensors.torch import save_file

from migm.bases.maskgit import MaskGIT, load_strictly, read_tensors
from migm.bases.tokenizer import ConvVQ
from migm.runtime import UserError

KEY = "base.weights"


def remove(tensors):
    del tensors["last_layer.2.bias"]


def add(tensors):
    tensors["last_layer.2.bias_ema"] = torch.zeros(2)


def reshape(tensors):
    tensors["last_layer.2.bias"] = torch.zeros(47)


def truncate(data):
    return data[: len(data) // 2]


def cut_header(data):
    return data[:5]


def pickle(data):
    return b"PK\x03\x04 a pickled checkpoint, not a safetensors file"


@pytest.fixture
def file(make_transformer, tmp_path):
    path = tmp_path / "some weights.safetensors"
    save_file(make_transformer(seed=5).state_dict(), path)
    return path


def refusal(call, kind=UserError):
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (remove, "lacks last_layer.2.bias"),
        (add, "has last_layer.2.bias_ema"),
        (reshape, "last_layer.2.bias is (47,) instead of (48,)"),
    ],
)
def test_a_file_with_other_tensors_is_refused(make_transformer, file, change, words):
    tensors = make_transformer(seed=5).state_dict()
    change(tensors)
    save_file(tensors, file)
    net = make_transformer(seed=0)
    message = refusal(lambda: load_strictly(net, file, KEY))
    assert f"{KEY}={file}" in message
    assert words in message
    before = make_transformer(seed=0).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())  # nothing half loaded


def test_many_misfits_are_counted_not_listed(make_transformer, file):
    save_file({"nothing": torch.zeros(1)}, file)
    net = make_transformer()
    message = refusal(lambda: load_strictly(net, file, KEY))
    assert message.count("lacks") == 3
    assert f"and {len(net.state_dict()) - 2} more" in message


@pytest.mark.parametrize("damage", [truncate, cut_header, pickle])
def test_a_damaged_file_is_refused(make_transformer, file, damage):
    file.write_bytes(damage(file.read_bytes()))
    message = refusal(lambda: load_strictly(make_transformer(), file, KEY))
    assert f"{KEY}={file}" in message
    assert "not a complete safetensors file" in message


@pytest.mark.parametrize("name", ["absent.safetensors", "", None])
def test_a_missing_file_is_refused(make_transformer, tmp_path, name):
    path = None if name is None else tmp_path / name  # "" leaves the folder itself
    message = refusal(lambda: load_strictly(make_transformer(), path, KEY), FileNotFoundError)
    assert message == f"{KEY}={path}: no such file"


def test_a_base_computes_with_the_weights_of_its_files(make_transformer, file, tmp_path):
    vq = ConvVQ(24, 4, 8, 1)
    save_file(vq.state_dict(), tmp_path / "vq.safetensors")
    fresh = ConvVQ(24, 4, 8, 1)
    base = MaskGIT(make_transformer(seed=0), fresh, file, tmp_path / "vq.safetensors", dtype="float32", device="cpu")
    ids = torch.arange(17)[None]
    with torch.no_grad():
        torch.testing.assert_close(base.transformer(ids), make_transformer(seed=5).eval()(ids))
    assert torch.equal(fresh.quantize.embedding.weight, vq.quantize.embedding.weight)


@pytest.mark.parametrize(
    ("good", "key"), [("weights", "base.tokenizer_weights"), ("tokenizer_weights", "base.weights")]
)
def test_each_of_the_bases_files_is_named_by_its_own_key(make_transformer, file, tmp_path, good, key):
    vq = tmp_path / "vq.safetensors"
    save_file(ConvVQ(24, 4, 8, 1).state_dict(), vq)
    given = {good: file if good == "weights" else vq}
    parts = make_transformer(), ConvVQ(24, 4, 8, 1)
    message = refusal(lambda: MaskGIT(*parts, **given, device="cpu"), FileNotFoundError)
    assert message.startswith(f"{key}=")


def test_read_tensors_returns_tensors_and_metadata(tmp_path):
    save_file({"x": torch.arange(3)}, tmp_path / "x.safetensors", {"kind": "test"})
    tensors, metadata = read_tensors(tmp_path / "x.safetensors", KEY)
    assert torch.equal(tensors["x"], torch.arange(3))
    assert metadata == {"kind": "test"}
