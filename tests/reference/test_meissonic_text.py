"""The recorded CLIP text encoder of Meissonic and aMUSEd, through its published layout."""

import json
from dataclasses import fields

import torch
from clip_parts import save_encoder, save_words
from tiny_parts import state_dict

from migm.bases.clip_text import CLIPText, CLIPTextConfig


def test_the_recorded_ids_give_the_recorded_rows(read_vector, tmp_path):
    tensors, meta = read_vector("meissonic_text")
    content = json.loads(meta["config"])
    sizes = {field.name: content[field.name] for field in fields(CLIPTextConfig) if field.name in content}
    config = CLIPTextConfig(**sizes)
    encoder = save_encoder(tmp_path / "text_encoder", state_dict(tensors), content)
    words = save_words(tmp_path / "tokenizer", config.vocab_size)
    text = CLIPText(config, encoder, words, False, torch.device("cpu"), torch.float32)
    rows = text.rows(tensors["in.ids"])
    for found, wanted in ((rows.text, tensors["out.text"]), (rows.pooled, tensors["out.pooled"])):
        assert float((found - wanted).abs().max()) <= 2e-5 * float(wanted.abs().max())
    begin, end, pad = (int(meta[name]) for name in ("bos", "eos", "pad"))
    assert (text.words.begin, text.words.end, text.words.pad) == (begin, end, pad)
    ids = text.ids([""])
    assert torch.equal(ids, tensors["in.negative_ids"]) or int(tensors["in.negative_ids"][0, 1]) != end
