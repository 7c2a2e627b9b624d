"""Checkpoints of Lumina-DiMOO's layout: config.json, shards and an index, refused by name where they do not fit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_parts import MARKERS, naming
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from migm.bases.dimoo import LuminaDiMOO
from migm.bases.llada import PREFIX, LLaDA, LLaDAConfig
from migm.bases.tokenizer import ConvVQ
from migm.bases.words import TAGS
from migm.runtime.errors import UserError

SIZES = LLaDAConfig(16, 2, 2, 24, 60, 10000.0, 1e-5)
INDEX = "model.safetensors.index.json"


@pytest.fixture
def checkpoint(tmp_path):
    """A random checkpoint of three shards, with text and image tokenizer."""
    torch.manual_seed(0)
    net = LLaDA(SIZES)
    net.init_weights()
    tensors = {PREFIX + name: tensor for name, tensor in net.state_dict().items()}
    names, placed = sorted(tensors), {}
    for i in range(3):
        file = f"model-{i + 1:05d}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names[i::3]}, tmp_path / file)
        placed |= dict.fromkeys(names[i::3], file)
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    SIZES.write(tmp_path / "config.json")
    save_file(ConvVQ(24, 4, 8, 1).state_dict(), tmp_path / "vq.safetensors")
    words = {"cat": 3, "?": 1, **{tag: 10 + i for i, tag in enumerate(TAGS)}}
    Tokenizer(WordLevel(words, unk_token="?")).save(str(tmp_path / "tokenizer.json"))
    return tmp_path, tensors


def load(folder, sizes=SIZES, **changes):
    return LuminaDiMOO(
        sizes,
        ConvVQ(24, 4, 8, 1),
        vocab_size=24,
        height=8,
        width=8,
        markers=MARKERS,
        system="",
        **{
            "weights": folder,
            "text_tokenizer": folder / "tokenizer.json",
            "tokenizer_weights": folder / "vq.safetensors",
            "dtype": "float32",
            "device": "cpu",
            **changes,
        },
    )


def test_a_sharded_checkpoint_loads_every_tensor(checkpoint):
    folder, tensors = checkpoint
    base = load(folder)
    loaded = base.transformer.state_dict()
    assert {PREFIX + name for name in loaded} == set(tensors)
    assert all(torch.equal(value, tensors[PREFIX + name]) for name, value in loaded.items())
    assert not any(p.requires_grad or p.is_meta for p in base.transformer.parameters())
    assert base.template("cat")  # its own tokenizer


def test_a_single_file_is_the_same_checkpoint(checkpoint):
    folder, tensors = checkpoint
    wanted = load(folder).fingerprint()
    for file in folder.glob("model*"):
        file.unlink()
    save_file(tensors, folder / "model.safetensors")
    assert load(folder).fingerprint() == wanted


def test_weights_come_in_the_precision_they_run_in(checkpoint):
    assert {p.dtype for p in load(checkpoint[0], dtype="bfloat16").transformer.parameters()} == {torch.bfloat16}


def edit_json(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def drop_from_index(folder):
    edit_json(folder / INDEX, lambda index: index["weight_map"].pop(PREFIX + "ln_f.weight"))


def add_to_index(folder):
    edit_json(folder / INDEX, lambda index: index["weight_map"].update(extra="model-00001-of-00003.safetensors"))


def drop_from_shard(folder):
    file = folder / "model-00001-of-00003.safetensors"
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, file)


def reshape(folder):
    file = folder / "model-00002-of-00003.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file({**tensors, name: torch.zeros(3)}, file)


def truncate(folder):
    file = folder / "model-00003-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-40])


def lose_shard(folder):
    (folder / "model-00003-of-00003.safetensors").unlink()


def break_index(folder):
    (folder / INDEX).write_text("{}")


def other_depth(folder):
    edit_json(folder / "config.json", lambda config: config.update(n_layers=3))


def other_kind(folder):
    edit_json(folder / "config.json", lambda config: config.update(alibi=True))


def no_theta(folder):
    edit_json(folder / "config.json", lambda config: config.pop("rope_theta"))


def no_config(folder):
    (folder / "config.json").unlink()


def break_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")


def other_tokenizer(folder):
    Tokenizer(WordLevel({"cat": 3, "?": 1}, unk_token="?")).save(str(folder / "tokenizer.json"))


def move_marker(folder):
    Tokenizer(WordLevel({"<answer>": 3, "?": 1}, unk_token="?")).save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_from_index, ["base.weights", "lacks model.transformer.ln_f.weight"]),
        (add_to_index, ["base.weights", "has extra, which this model has not"]),
        (drop_from_shard, ["model-00001-of-00003.safetensors", "lacks model.transformer", "the index says"]),
        (reshape, ["model-00002-of-00003.safetensors", "is (3,) instead of ("]),
        (truncate, ["model-00003-of-00003.safetensors", "is not a complete safetensors file"]),
        (lose_shard, ["base.weights", "model-00003-of-00003.safetensors", "no such file"]),
        (break_index, ["base.weights", INDEX, "is no index of shards"]),
        (other_depth, ["base.transformer.n_layers=2", "config.json says 3", "set base.transformer.n_layers=3"]),
        (other_kind, ["config.json", "alibi=True is not supported, only False"]),
        (no_theta, ["config.json", "lacks 'rope_theta'"]),
        (no_config, ["base.weights", "config.json", "no such file"]),
        (break_tokenizer, ["base.text_tokenizer", "is no tokenizer.json"]),
        (other_tokenizer, ["base.text_tokenizer", "tokenizer.json", "lacks <system>"]),
        (move_marker, ["base.markers.answer=32", "<answer> is 3", "tokenizer.json"]),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(checkpoint, change, words):
    folder, _ = checkpoint
    change(folder)
    with pytest.raises((UserError, FileNotFoundError), match=naming(*words)) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_an_odd_head_is_refused():
    with pytest.raises(UserError, match=naming("d_model=18", "n_heads=6")):
        LLaDA(LLaDAConfig(18, 6, 1, 8, 60, 10000.0, 1e-5))


def test_random_weights_need_no_file_and_depend_on_the_seed(tmp_path):
    prints = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        base = load(tmp_path / "nowhere", random_weights=True)
        prints.append(base.fingerprint())
    assert prints[0] == prints[1] != prints[2]
    assert base.template("two words") != base.template("other words")
