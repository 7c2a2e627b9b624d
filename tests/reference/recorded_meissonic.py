"""Meissonic's recorded transformers and bases, built by the sizes in their files."""

import json
from dataclasses import fields

from clip_parts import save_encoder, save_words
from safetensors.torch import save_file
from tiny_parts import state_dict

from migm.bases.amused import AmusedVQ
from migm.bases.clip_text import CLIPTextConfig
from migm.bases.meissonic import WEIGHTS, Meissonic
from migm.bases.meissonic_config import MeissonicConfig
from migm.bases.meissonic_net import MeissonicTransformer
from migm.bases.weights import assign_strictly


def config_of(meta):
    """The sizes of a recorded transformer, from its config.json."""
    content = json.loads(meta["config"])
    return MeissonicConfig(**{field.name: content[field.name] for field in fields(MeissonicConfig)})


def recorded_net(read_vector, name="meissonic_state"):
    tensors, meta = read_vector(name)
    net = MeissonicTransformer(config_of(meta))
    assign_strictly(net, tensors, name)
    return net.eval().requires_grad_(False)


def recorded_meissonic(read_vector, folder, facts, kind=Meissonic, **changes):
    """A base with the recorded weights, loaded as its checkpoint is; `facts` are the metadata of a recorded run."""
    state_file = facts["state_file"]
    tensors, meta = read_vector(state_file)
    config, text = config_of(meta), {**read_vector("meissonic_text")[1]}
    (folder / "transformer").mkdir(exist_ok=True)
    save_file(tensors, folder / "transformer" / WEIGHTS)
    (folder / "transformer" / "config.json").write_text(meta["config"])
    sizes = json.loads(text["config"])
    save_encoder(folder / "text_encoder", state_dict(read_vector("meissonic_text")[0]), sizes)
    stride = int(facts["stride"])
    vq = AmusedVQ([2] * stride.bit_length(), 1, 2, config.codebook_size, 1)
    save_file(vq.state_dict(), folder / "vq.safetensors")
    parts = {
        "transformer": config,
        "text": CLIPTextConfig(**{field.name: sizes[field.name] for field in fields(CLIPTextConfig)}),
        "tokenizer": vq,
        "height": int(facts["height"]),
        "width": int(facts["width"]),
        "crop": json.loads(facts["crop"]),
        "score": float(facts["aesthetic_score"]),
        "weights": folder,
        "text_encoder": folder / "text_encoder",
        "text_tokenizer": save_words(folder / "tokenizer", sizes["vocab_size"]),
        "tokenizer_weights": folder / "vq.safetensors",
        "dtype": "float32",
        "device": "cpu",
    }
    return kind(**{**parts, **changes})


def speaking(base, prompts):
    """The base with a tokenizer that gives each of these prompts its recorded ids."""
    base.text.words = lambda prompt: prompts[prompt].tolist()
    return base
