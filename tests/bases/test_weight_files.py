"""Weights are loaded strictly: a file that does not fit is refused with its name, its key and the tensor."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from migm.bases.maskgit import MaskGIT
from migm.bases.tokenizer import ConvVQ
from migm.bases.weights import load_strictly, read_tensors
from migm.runtime.errors import UserError

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


class RunsCode:
    """What a malicious checkpoint does when it is unpickled."""

    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


@pytest.fixture
def checkpoint(make_transformer, tmp_path):
    """A checkpoint as MaskGIT's authors publish them: the weights beside counters and an optimiser's state."""
    weights = make_transformer(seed=5).state_dict()
    moments = {i: {"step": torch.tensor(1.0), "exp_avg": torch.zeros_like(w)} for i, w in enumerate(weights.values())}
    content = {"iter": 3, "global_epoch": 1, "model_state_dict": weights, "optimizer_state_dict": {"state": moments}}
    path = tmp_path / "published.pth"
    torch.save(content, path)
    return path


def test_a_published_checkpoint_is_loaded(make_transformer, checkpoint):
    net = make_transformer(seed=0)
    load_strictly(net, checkpoint, KEY)
    wanted = make_transformer(seed=5).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("nest", ["state_dict", None])
def test_a_state_dict_may_lie_elsewhere(tmp_path, nest):
    tensors = {"x": torch.arange(3)}
    torch.save({nest: tensors} if nest else tensors, tmp_path / "x.ckpt")
    assert torch.equal(read_tensors(tmp_path / "x.ckpt", KEY)[0]["x"], torch.arange(3))


@pytest.mark.parametrize("content", [{"epoch": 3}, {"state_dict": {"x": 1}}, [torch.zeros(1)], {1: torch.zeros(1)}])
def test_a_checkpoint_without_weights_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    message = refusal(lambda: read_tensors(tmp_path / "x.pt", KEY))
    assert f"{KEY}={tmp_path / 'x.pt'} holds no state dict" in message


def test_a_pickle_with_code_is_refused_before_the_code_runs(tmp_path, capsys):
    torch.save({"model_state_dict": {"x": torch.zeros(1)}, "args": RunsCode()}, tmp_path / "x.pth")
    assert "code in it could run" in refusal(lambda: read_tensors(tmp_path / "x.pth", KEY))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("damage", [truncate, cut_header])
def test_a_damaged_checkpoint_is_refused(checkpoint, damage):
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    assert "not a complete torch checkpoint" in refusal(lambda: read_tensors(checkpoint, KEY))


def test_an_address_on_the_hub_is_fetched(monkeypatch, checkpoint):
    asked = []
    monkeypatch.setattr("migm.bases.weights.hf_hub_download", lambda *a: asked.append(a) or str(checkpoint))
    assert "tok_emb.weight" in read_tensors("hf://someone/weights/folder/model.pth", KEY)[0]
    assert asked == [("someone/weights", "folder/model.pth")]


def test_a_file_that_cannot_be_fetched_says_what_to_do(monkeypatch):
    def fail(*_):
        raise LocalEntryNotFoundError("offline\nand more lines")

    monkeypatch.setattr("migm.bases.weights.hf_hub_download", fail)
    address = "hf://someone/weights/model.pth"
    message = refusal(lambda: read_tensors(address, KEY), FileNotFoundError)
    assert message.startswith(f"{KEY}={address} is not in the local cache and could not be fetched (offline)")
    assert "base.random_weights=true" in message


def test_half_an_address_is_refused():
    assert "hf://<owner>/<repository>/<file>" in refusal(lambda: read_tensors("hf://someone/model.pth", KEY))


FULL_SIZE = """
import sys, torch
from migm.bases.transformer import MaskTransformer
weights = MaskTransformer(1024, 1024, 1000, 768, 24, 16, 3072).state_dict()
state = {i: {"exp_avg": torch.zeros_like(w), "exp_avg_sq": torch.zeros_like(w)} for i, w in enumerate(weights.values())}
torch.save({"iter": 1, "model_state_dict": weights, "optimizer_state_dict": {"state": state}}, sys.argv[1])
"""
LOAD = """
import resource, sys, time, torch
from migm.bases.transformer import MaskTransformer
from migm.bases.weights import load_strictly
net, start = MaskTransformer(1024, 1024, 1000, 768, 24, 16, 3072), time.perf_counter()
load_strictly(net, sys.argv[1], "base.weights")
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_the_full_size_checkpoint_needs_little_time_and_memory(tmp_path):
    """All 305 tensors of MaskGIT-512 beside an optimiser's state: 2.1 GB, of which a third is needed."""
    file = str(tmp_path / "full.pth")
    subprocess.run([sys.executable, "-c", FULL_SIZE, file], check=True)
    done = subprocess.run([sys.executable, "-c", LOAD, file], check=True, capture_output=True, text=True)
    seconds, peak = map(float, done.stdout.split())
    assert Path(file).stat().st_size > 2.1e9
    assert seconds < 20
    assert peak < 4e9
