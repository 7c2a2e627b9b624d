"""The bundled weights: small, complete, and a base whose samples are what was asked for."""

import json
from pathlib import Path

import pytest
import torch
from tiny_parts import composed, moment
from torch.nn import functional as F

import migm
from migm.bases.weights import read_tensors
from migm.cifar10 import classes
from migm.config.building import asset_path, build, load
from migm.config.roots import TrainConfig
from migm.metrics.metric import Batch
from migm.runtime.errors import UserError
from migm.sampling.draw import InverseCDF
from migm.sampling.sampler import Sampler
from migm.shortcuts.checkpoint import load_shortcut

PHOTOS = Path(__file__).parent / "cifar10"  # four test photos of each class
FOLDER = Path(asset_path())
DEEP = FOLDER / "cifar10_deep"
HEADS = 4


def test_assets_are_small_and_described():
    files = list(FOLDER.rglob("*.safetensors"))
    sizes = {file: file.stat().st_size for file in files}
    assert sum(sizes.values()) < 62e6
    assert sum(size for file, size in sizes.items() if file.parent == DEEP) < 40e6
    described = (FOLDER / "README.md").read_text()
    assert all(file.name in described or f"{file.parent.name}/" in described for file in files)


def test_most_samples_are_recognised_as_their_class():
    config = load(composed("train", "device=cpu"), TrainConfig)
    sampler = Sampler(build(config.base), build({**config.sampling, "num_steps": 8, "num_full_steps": 8}))
    agreement = build(config.metric["class_agreement"])
    images = torch.arange(50)
    agreement.update(Batch(sampler.images(images % 10, 1, images), images % 10))
    assert agreement.compute() > 0.65


@pytest.fixture(scope="module")
def deep():
    return migm.load_base("cifar10_deep", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def deep_bfloat16():
    return migm.load_base("cifar10_deep", device="cpu", dtype="bfloat16")


@pytest.fixture(scope="module")
def photos():
    return classes.load(PHOTOS, "test")


@pytest.fixture(scope="module")
def tokens(deep, photos):
    return deep.tokenize(photos[0])


@pytest.mark.parametrize("path", sorted(DEEP.glob("[!c]*.safetensors")), ids=lambda path: path.stem)  # no calibration
def test_a_file_of_the_deeper_base_is_bfloat16_and_says_how_it_was_made(path):
    tensors, metadata = read_tensors(path, "assets")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    card = json.loads(metadata["card"])
    assert {"what", "data", "trained", "time", "made_with", "measured_on", "measured"} <= set(card)
    assert "H200" in card["measured_on"]


def test_the_weights_of_the_deeper_base_are_the_measured_ones(deep, deep_bfloat16):
    assert (deep_bfloat16.fingerprint(), deep.fingerprint()) == ("991ab2a1a8b1", "eb36c30a2eb3")


def test_photos_survive_the_deeper_tokenizer(deep, photos, tokens):
    assert tokens.shape == (40, 256)
    error = (deep.decode(tokens).float() - photos[0].float()).square().mean()
    assert 10 * torch.log10(255**2 / error) > 32


def by_hand(w, ids):
    """Features of ids (b, t) from the file's tensors alone."""

    def norm(x, name, eps=1e-5):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def attend(x, name):
        q, k, v = (x @ w[f"{name}.in_proj_weight"].T + w[f"{name}.in_proj_bias"]).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return linear((weights @ v).transpose(1, 2).flatten(2), f"{name}.out_proj")

    x = w["tok_emb.weight"][ids] + w["pos_emb"]
    x = linear(
        norm(F.gelu(linear(norm(x, "first_layer.0", 1e-12), "first_layer.2")), "first_layer.4", 1e-12), "first_layer.6"
    )
    for i in range(16):
        at = f"transformer.layers.{i}"
        x = x + attend(norm(x, f"{at}.0.norm"), f"{at}.0.fn.mha")
        hidden = F.gelu(linear(norm(x, f"{at}.1.norm"), f"{at}.1.fn.net.0"))
        x = x + linear(hidden, f"{at}.1.fn.net.3")
    return norm(F.gelu(linear(norm(x, "last_layer.0", 1e-12), "last_layer.2")), "last_layer.4", 1e-12)


def test_features_and_logits_of_the_deeper_base_are_those_of_its_tensors(deep, photos, tokens):
    w = {key: tensor.float() for key, tensor in read_tensors(DEEP / "base.safetensors", "assets")[0].items()}
    shown, labels = masked(tokens[:2]), photos[1][:2]
    (branch,) = deep.encode(labels, guided=False)
    features = deep.features(shown, branch, moment(torch.ones(2)))
    right = by_hand(w, torch.cat([shown, 513 + labels[:, None]], 1))
    torch.testing.assert_close(features, right, rtol=1e-3, atol=1e-3)
    logits = right[:, :256] @ w["tok_emb.weight"][:512].T + w["bias"][:256, :512]
    torch.testing.assert_close(deep.head(features[:, :256]), logits, rtol=1e-3, atol=1e-3)


def masked(tokens, share=0.5):
    hidden = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)) < share
    return tokens.masked_fill(hidden, 512)


def test_the_deeper_base_expects_what_photos_show(deep, photos, tokens):
    """4.20 nats were measured here, of 6.24 for uniform guesses."""
    tokens, labels = tokens[::4], photos[1][::4]  # one of each class
    shown = masked(tokens)
    (branch,) = deep.encode(labels, guided=False)
    logits = deep.head(deep.features(shown, branch, moment(torch.ones(10)))[:, :256])
    hidden = shown == 512
    assert F.cross_entropy(logits[hidden], tokens[hidden]) < 4.4


@pytest.mark.parametrize("name", ["shortcut", "shortcut_r1"])
def test_a_bundled_shortcut_reads_new_tokens_and_predicts_better_than_reuse(deep, photos, tokens, name):
    network, _ = load_shortcut(DEEP / f"{name}.safetensors", deep.fingerprint(), "assets")
    tokens, labels = tokens[::10], photos[1][::10]
    before = masked(tokens, 0.9)
    new = (
        (before == 512)
        .float()
        .mul(torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1)))
        .topk(8)
        .indices
    )
    after = before.scatter(1, new, tokens.gather(1, new))
    (branch,) = deep.encode(labels, guided=False)
    now, target = (deep.features(x, branch, moment(torch.ones(4))) for x in (before, after))
    hidden = after == 512

    def error(found):
        return (found - target)[:, :256][hidden].square().mean()

    def said(read):
        with torch.inference_mode():
            return network(now, deep.control(read, new, branch), hidden.float().mean(1))

    right = tokens.gather(1, new)
    assert error(said(right)) < 0.75 * error(now)
    assert error(said((right + 7) % 512)) > error(now)


def test_the_bundled_shortcuts_run_by_name(deep):
    images = {}
    for name in ("shortcut_bundled", "shortcut_bundled_r1", "reuse"):
        sampler = migm.Sampler(deep, 2, 1, name)
        images[name] = sampler.images(torch.tensor([3, 8]), 1, torch.tensor([0, 1]))
        assert images[name].shape == (2, 3, 32, 32)
        assert images[name].float().std() > 10
    one, other, reuse = images.values()
    assert not any(torch.equal(a, b) for a, b in ((one, other), (one, reuse), (other, reuse)))


def test_the_shortcut_runs_by_the_bundled_file_where_none_was_trained(deep, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    sampler = migm.Sampler(deep, 2, 1, "shortcut")
    said = capfd.readouterr().out.splitlines()
    assert [line.partition(", ")[0] for line in said] == [f"shortcut: {DEEP / 'shortcut.safetensors'}"]
    assert "bundled with the base (1,770 steps of 256 pairs" in said[0]
    named = [migm.Sampler(deep, 2, 1, f"shortcut_bundled{end}").identity["predictor"] for end in ("", "_r1")]
    record = sampler(labels=[3]).record
    assert record["predictor"] == named[0] != named[1]
    assert record["accelerator"] == "shortcut"


def test_a_bundled_shortcut_fits_the_base_in_both_precisions_and_no_other(deep, deep_bfloat16):
    file = DEEP / "shortcut.safetensors"
    found = {migm.load_shortcut(file, base).fingerprint(base) for base in (deep, deep_bfloat16)}
    assert len(found) == 1
    with pytest.raises(UserError, match="trained for base 991ab2a1a8b1"):
        migm.load_shortcut(file, migm.load_base("cifar10", device="cpu"))


def test_the_sampler_of_the_deeper_base_is_the_swept_one(deep):
    sampling = migm.Sampler(deep).sampling
    assert (sampling.num_steps, sampling.guidance.guidance_scale, sampling.select.temperature) == (32, 1.0, 60.0)
    assert sampling.draw == InverseCDF(inverse_temperature=1.0)
