"""MMaDA's published files: loaded through the real path, and refused in one line where they do not fit."""

import json

import pytest
import torch
from mmada_parts import SETTINGS, SIZES, TASK_MARKERS, published_magvit, small_magvit, task_base, write_checkpoint
from safetensors.torch import load_file, save_file
from tiny_parts import moment, naming
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from migm.bases.llada import LLaDAConfig
from migm.bases.magvit import Levels, MagvitV2
from migm.bases.mmada import NAMES, MMaDA, TaskMarkers
from migm.runtime.errors import UserError

M = TaskMarkers(**TASK_MARKERS)


def test_a_published_checkpoint_loads_every_tensor_and_gives_equal_features(tmp_path):
    random = task_base(dtype="float32")
    again = plain(write_checkpoint(tmp_path, random))
    for part in ("transformer", "tokenizer"):
        ours, right = (getattr(each, part).state_dict() for each in (again, random))
        assert ours.keys() == right.keys()
        assert all(torch.equal(ours[name], right[name]) for name in right)
    tokens, words = torch.arange(16)[None], ["a red cat"]
    random.template = again.template  # its words
    branch = again.encode(words, guided=True)[0]
    assert torch.equal(
        again.features(tokens, branch, moment(torch.ones(1))), random.features(tokens, branch, moment(torch.ones(1)))
    )
    assert torch.equal(again.decode(tokens), random.decode(tokens))
    assert torch.equal(again.tokenize(again.decode(tokens)), random.tokenize(random.decode(tokens)))
    assert again.fingerprint() == random.fingerprint()
    assert again.decoder_fingerprint() == random.decoder_fingerprint()
    assert again.template("a red cat") == [M.t2i, M.bos, 1, 2, 4, M.eos]


def plain(files, **changes):
    """The base of a checkpoint's folder, nothing of it drawn."""
    return MMaDA(**{**SETTINGS, "dtype": "float32", **files, "tokenizer": small_magvit(), **changes})


@pytest.mark.parametrize(("kind", "name"), [("int8_weights", "Int8Linear"), ("fp8_rowwise", "Float8Linear")])
def test_linears_of_lower_precision_are_made_while_a_checkpoint_is_loaded(tmp_path, kind, name):
    files = write_checkpoint(tmp_path, task_base(dtype="float32"))
    right, lower = plain(files), plain(files, linear=kind)
    assert lower.plain_fingerprint() == right.fingerprint() != lower.fingerprint()
    assert type(lower.transformer.blocks[0].q_proj).__name__ == name
    tokens, (branch, _) = torch.arange(16)[None], right.encode(["a cat"], guided=True)
    ours, wanted = (each.features(tokens, branch, moment(torch.ones(1))) for each in (lower, right))
    assert 0 < (ours - wanted).norm() / wanted.norm() < 0.2


def edit(file, **entries):
    content = {**json.loads(file.read_text()), **entries}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def other_family(folder):
    edit(folder / "config.json", model_type="llada")


def unnamed_family(folder):
    edit(folder / "config.json", model_type=None)


def other_depth(folder):
    edit(folder / "config.json", n_layers=3)


def other_codes(folder):
    edit(folder / "config.json", codebook_size=64)


def other_image(folder):
    edit(folder / "config.json", num_vq_tokens=64)


def other_mask(folder):
    edit(folder / "config.json", mask_token_id=35)


def no_theta(folder):
    edit(folder / "config.json", rope_theta=None)


def no_config(folder):
    (folder / "config.json").unlink()


def less_weights(folder):
    file = folder / "model-00001-of-00002.safetensors"
    save_file(dict(sorted(load_file(file).items())[1:]), file)


def tokenizer_file(folder, words):
    Tokenizer(WordLevel(words, unk_token="?")).save(str(folder / "tokenizer.json"))


def no_text(folder):
    (folder / "tokenizer.json").unlink()


def text_of_another_model(folder):
    tokenizer_file(folder, {"?": 0, "cat": 1})


def moved_mask(folder):
    tokenizer_file(folder, {"?": 0, NAMES["bos"]: 30, NAMES["eos"]: 31, NAMES["mask"]: 29})


def text_of_more_words(folder):
    tokenizer_file(folder, {"?": 0, NAMES["bos"]: 30, NAMES["eos"]: 31, "cat": 41})


def no_image_tokenizer(folder):
    (folder / "pytorch_model.bin").unlink()


def image_tokenizer_of_another_size(folder):
    level = Levels(8, [1, 1, 2], [1, 1, 1])
    torch.save(published_magvit(MagvitV2(level, level, 5, 8)), folder / "pytorch_model.bin")


def image_tokenizer_of_another_family(folder):
    torch.save(
        {"encoder.conv_in.weight": torch.zeros(8, 3, 3, 3), "other": torch.zeros(1)}, folder / "pytorch_model.bin"
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The bytes of every file of a checkpoint."""
    folder = tmp_path_factory.mktemp("mmada")
    write_checkpoint(folder, task_base(dtype="float32"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_family, ["base.weights", "config.json", "model_type='llada'", "'mmada'"]),
        (unnamed_family, ["base.weights", "config.json", "model_type=None", "'mmada'"]),
        (other_depth, ["base.transformer.n_layers=2", "config.json says 3", "set base.transformer.n_layers=3"]),
        (other_codes, ["base.vocab_size=32", "codebook_size 32", "config.json says 64"]),
        (other_image, ["base.height=16, base.width=16", "num_vq_tokens 16", "config.json says 64"]),
        (other_mask, ["base.markers.mask=36", "mask_token_id 36", "config.json says 35"]),
        (no_theta, ["config.json", "lacks 'rope_theta'"]),
        (no_config, ["base.weights", "config.json", "no such file"]),
        (
            less_weights,
            ["base.weights", "model-00001-of-00002.safetensors", "lacks model.transformer", "the index says"],
        ),
        (no_text, ["base.text_tokenizer", "tokenizer.json", "no such file"]),
        (text_of_another_model, ["base.text_tokenizer", "lacks <|startoftext|>", "another model's file"]),
        (moved_mask, ["base.markers.mask=36", "<|mdm_mask|> is 29"]),
        (text_of_more_words, ["base.code_offset=40", "base.text_tokenizer", "ids up to 41"]),
        (no_image_tokenizer, ["base.tokenizer_weights", "pytorch_model.bin", "no such file"]),
        (image_tokenizer_of_another_size, ["base.tokenizer_weights", "does not fit the configured model", "lacks"]),
        (image_tokenizer_of_another_family, ["base.tokenizer_weights", "lacks", "more"]),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path, written, change, words):
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
    change(tmp_path)
    files = {"weights": tmp_path, "text_tokenizer": tmp_path / "tokenizer.json", "random_weights": False}
    with pytest.raises((UserError, FileNotFoundError), match=naming(*words)) as caught:
        plain({**files, "tokenizer_weights": tmp_path / "pytorch_model.bin"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"height": 18}, ["base.height=18", "multiples of 4"]),
        ({"vocab_size": 64}, ["base.vocab_size=64", "32 codes", "base.tokenizer.bits=5"]),
        ({"code_offset": 49}, ["base.code_offset=49", "end at row 81", "base.transformer.embedding_size=80"]),
        ({"code_offset": 36}, ["base.markers.mask=36", "below base.code_offset=36"]),
        ({"max_text_len": 1}, ["base.max_text_len=1", "2 or more"]),
        ({"markers": {**TASK_MARKERS, "eos": 30}}, ["base.markers.bos=30", "another marker"]),
        ({"markers": {"mask": 3}}, ["base.markers={mask}", "mask, bos, eos, soi, eoi, t2i, pad"]),
        ({"transformer": LLaDAConfig(**{**vars(SIZES), "n_heads": 5})}, ["d_model=48", "n_heads=5"]),
    ],
)
def test_settings_that_cannot_be_are_refused_by_key(changes, words):
    with pytest.raises(UserError, match=naming(*words)):
        task_base(**changes)


def test_levels_that_do_not_fit_each_other_are_refused():
    with pytest.raises(UserError, match=naming("factors=[1, 2]", "blocks=[1]")):
        Levels(8, [1, 2], [1])
    with pytest.raises(UserError, match=naming("base.tokenizer", "2 and 1 levels")):
        MagvitV2(Levels(8, [1, 2], [1, 1]), Levels(8, [1], [1]), 5, 8)


def test_inputs_that_cannot_be_drawn_are_refused(tmp_path):
    base = task_base()
    with pytest.raises(UserError, match=naming("labels=[3]", "prompts")):
        base.encode(torch.tensor([3]), guided=False)
    with pytest.raises(UserError, match=naming("image of 20x16 pixels", "draws 16x16")):
        base.tokenize(torch.zeros(1, 3, 16, 20, dtype=torch.uint8))
    worded = plain(write_checkpoint(tmp_path, task_base(dtype="float32")))
    with pytest.raises(UserError, match=naming("prompt=qqq", "knows nothing of it", "known are")):
        worded.encode(["qqq"], guided=False)
    with pytest.raises(UserError, match="control marker"):
        worded.encode([f"a {NAMES['eos']}"], guided=False)
    assert "leaves out zebra" in worded.review(["a red zebra"])
