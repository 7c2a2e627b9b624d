"""The CLIP text encoder: ids as the library's, rows kept, published folders, and refusals."""

import json
from dataclasses import replace

import pytest
import torch
from clip_parts import BEGIN, END, TINY, save_encoder, save_random_encoder, save_words
from safetensors.torch import load_file

from migm.bases.clip_text import KEPT, CLIPText
from migm.bases.clip_words import CLIPWords, PaddedChecksums
from migm.runtime.errors import UserError

CPU = torch.device("cpu")
PROMPTS = ["a b c", "", "abc abc", "a! b!", "one two three four five"]


def built(folder=None, words=None, random=True, config=TINY, dtype=torch.float32) -> CLIPText:
    torch.manual_seed(0)
    return CLIPText(config, folder, words, random, CPU, dtype)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("pad", ["!", END])
def test_ids_equal_those_of_the_library_padded_and_cut(tmp_path, fast, pad):
    from transformers import CLIPTokenizer

    folder = save_words(tmp_path, pad=pad, fast=fast)
    words = CLIPWords(folder, 9, 60, "base.text_tokenizer")
    library = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    found = library(PROMPTS, padding="max_length", truncation=True, max_length=9).input_ids
    assert [words(prompt) for prompt in PROMPTS] == found
    assert words.pad == {"!": 0, END: 59}[pad]
    assert {len(ids) for ids in found} == {9}


def test_a_prompt_that_is_too_long_is_cut_counted_and_said(tmp_path):
    text = built(words=save_words(tmp_path))
    assert text.left_out(["a b", "abc"]) == ""
    assert text.left_out(["abcde fghij"]) == (
        "the prompt is cut: the text encoder reads 7 tokens, and 'abcde fghij' has 10"
    )
    assert text.left_out(["a", "abcde fgh", "abcdefghijk"]).startswith("2 of 3 prompts are cut: the text encoder")
    assert text.ids(["abcde fghij"])[0, -1] == 59


def test_checksums_read_every_word_and_give_no_marker():
    words = PaddedChecksums(60, 9)
    ids = words("a b, c")
    assert ids[0] == 58
    assert ids[5] == 59
    assert ids[6:] == [0, 0, 0]
    assert words("A b") == words("a b") != words("a c")
    assert all(0 < n < 58 for n in words.body(" ".join(map(str, range(300)))))
    assert "reads 7 tokens, and '1 2 3 4 5 6 7 8' has 8" in words.left_out(["1 2 3 4 5 6 7 8"])


def test_rows_are_computed_once_a_prompt_and_do_not_depend_on_the_batch(monkeypatch):
    text = built()
    ids = text.ids(PROMPTS)
    rows = text.rows(ids)
    assert rows.text.shape == (5, 9, 24)
    assert rows.pooled.shape == (5, 32)
    torch.testing.assert_close(tuple(text.run(ids)), tuple(rows))
    monkeypatch.setattr(text, "run", None)
    again = text.rows(ids[[3, 1]])
    assert torch.equal(again.text, rows.text[[3, 1]])
    assert torch.equal(again.pooled, rows.pooled[[3, 1]])


def test_only_the_last_prompts_are_kept():
    text = built(config=replace(TINY, max_position_embeddings=3))
    ids = torch.tensor([[58, 1 + n % 57, 1 + n // 57] for n in range(KEPT + 5)])
    assert len(text.rows(ids).text) == KEPT + 5
    assert len(text.kept) == KEPT
    assert tuple(ids[-1].tolist()) in text.kept
    assert tuple(ids[0].tolist()) not in text.kept


def test_rows_come_in_the_dtype_of_the_base():
    rows = built(dtype=torch.bfloat16).rows(torch.zeros(1, 9, dtype=torch.long))
    assert rows.text.dtype == rows.pooled.dtype == torch.bfloat16


@pytest.mark.parametrize("whole", [False, True])
def test_a_published_folder_gives_the_rows_that_its_weights_gave(tmp_path, whole):
    """A whole CLIP's file too, whose config nests that of the text encoder."""
    torch.manual_seed(1)
    net = save_random_encoder(tmp_path)
    if whole:
        config = json.loads((tmp_path / "config.json").read_text())
        extra = {"vision_model.x": torch.ones(1), "logit_scale": torch.ones(())}
        extra["text_model.embeddings.position_ids"] = torch.arange(9)[None]
        save_encoder(tmp_path, {**load_file(tmp_path / "model.safetensors"), **extra}, {"text_config": config})
    text = built(tmp_path, save_words(tmp_path / "words"), random=False)
    ids = text.ids(PROMPTS)
    out = net(input_ids=ids, output_hidden_states=True)
    torch.testing.assert_close(text.rows(ids).text, out.hidden_states[-2])
    torch.testing.assert_close(text.rows(ids).pooled, out.text_embeds)


def test_the_activation_is_that_of_the_file(tmp_path):
    save_random_encoder(tmp_path, replace(TINY, hidden_act="quick_gelu"))
    text = built(tmp_path, save_words(tmp_path / "words"), random=False)
    assert text.net.config.hidden_act == "quick_gelu"
    with pytest.raises(UserError, match=r"base\.text\.hidden_act=gelu, but .* says quick_gelu"):
        built(tmp_path, tmp_path / "words", random=False, config=replace(TINY, hidden_act="gelu"))


def test_the_fingerprint_covers_weights_words_and_padding(tmp_path):
    prints = [built().fingerprint()]
    prints.append(CLIPText(TINY, None, None, True, CPU, torch.float32).fingerprint())  # other random weights
    prints += [built(words=save_words(tmp_path / pad, pad=pad)).fingerprint() for pad in ("!", END)]
    assert len(set(prints)) == 4
    assert prints[0] == built().fingerprint()


def refused(*args, **kwargs) -> str:
    with pytest.raises((UserError, FileNotFoundError)) as error:
        built(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_encoders_that_do_not_fit_are_refused_in_one_line(tmp_path):
    words = save_words(tmp_path / "words")
    encoder = tmp_path / "encoder"
    assert "base.text_encoder is not set" in refused(None, words, random=False)
    assert "base.text_encoder=" in refused(encoder, words, random=False)
    save_random_encoder(encoder)
    wider = replace(TINY, hidden_size=32)
    assert "base.text.hidden_size=32, but" in refused(encoder, words, random=False, config=wider)
    state = load_file(encoder / "model.safetensors")
    config = json.loads((encoder / "config.json").read_text())
    first = state.pop("text_projection.weight")
    save_encoder(encoder, state, config)
    assert "lacks text_projection.weight" in refused(encoder, words, random=False)
    save_encoder(encoder, {**state, "text_projection.weight": first, "more": first + 1}, config)
    assert "has more, which this model has not" in refused(encoder, words, random=False)
    (encoder / "model.safetensors").write_bytes(b"cut")
    assert "is not a complete safetensors file" in refused(encoder, words, random=False)
    (encoder / "config.json").write_text("[1]")
    assert "is no config.json of a CLIP text encoder" in refused(encoder, words, random=False)


def test_tokenizers_that_do_not_fit_are_refused_in_one_line(tmp_path):
    save_random_encoder(tmp_path / "encoder")

    def words(folder, **changes):
        return refused(tmp_path / "encoder", folder, random=False, **changes)

    assert "base.text_tokenizer is not set" in words(None)
    assert f"base.text_tokenizer={tmp_path / 'none'}/tokenizer_config.json: no such file" in words(tmp_path / "none")
    folder = save_words(tmp_path / "words", vocab_size=70)
    assert "has 70 ids, the text encoder base.text.vocab_size=60" in words(folder)
    (folder / "vocab.json").write_text("{")
    assert "is no tokenizer of CLIP" in words(folder)
    (folder / "merges.txt").unlink()
    assert "tokenizer.json: no such file" in words(folder)
    text = built(words=save_words(tmp_path / "right"))
    for marker in (BEGIN, END):
        with pytest.raises(UserError, match="holds a control marker of CLIP"):
            text.ids([f"a {marker} b"])


def test_sizes_that_no_encoder_has_are_refused():
    with pytest.raises(UserError, match=r"base\.text\.hidden_size=24 must be a multiple of .*num_attention_heads=5"):
        replace(TINY, num_attention_heads=5)
