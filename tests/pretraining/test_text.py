"""The tokenizer of the captions, captions at random, and the bundled prompt files."""

from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from migm.bases.inputs import read_prompts
from migm.cifar10.captions import WORDS, Facts, caption, parse
from migm.cifar10.classes import CLASSES
from migm.config.building import asset_path
from migm.pretraining.text import (
    MENTIONED,
    SPECIAL,
    UNKNOWN,
    build_tokenizer,
    captions_of,
    facts_of_photos,
    say,
    write_prompts,
)
from migm.runtime.errors import UserError


def test_ids_are_dense_and_special_tokens_last():
    tokenizer = build_tokenizer()
    ids = {i: word for word, i in tokenizer.get_vocab().items()}
    assert [ids[i] for i in range(len(ids))] == [UNKNOWN, *WORDS, *SPECIAL]
    assert tokenizer.get_vocab_size() == len(ids) < 60


def test_special_tokens_stand_inside_text_and_nothing_is_added():
    tokenizer = build_tokenizer()
    prompt = "<system></system><user>a photo of a red truck</user>"
    assert tokenizer.encode(prompt).tokens == [*SPECIAL[:3], "a", "photo", "of", "a", "red", "truck", "</user>"]
    assert tokenizer.encode("<user>A Photo, of\na car").tokens == ["<user>", "a", "photo", UNKNOWN, "of", "a", UNKNOWN]
    together = "".join(SPECIAL)
    assert tokenizer.encode(together).tokens == list(SPECIAL)
    assert tokenizer.encode("").ids == []
    assert tokenizer.decode(tokenizer.encode(prompt).ids) == "a photo of a red truck"


def test_no_caption_has_an_unknown_word():
    tokenizer = build_tokenizer()
    texts = [
        caption(Facts(name, brightness, colour, colour))
        for name, brightness, colour in product(CLASSES, ("dark", "bright"), WORDS[-9:])
    ]
    assert all(tokenizer.token_to_id(UNKNOWN) not in tokenizer.encode(text).ids for text in texts)
    assert {word for text in texts for word in text.split()} == set(WORDS)


def test_a_saved_tokenizer_is_the_same(tmp_path):
    build_tokenizer().save(str(tmp_path / "tokenizer.json"))
    text = "<user>a bright photo of an airplane</user><|mdm_mask|><answer>"
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids == build_tokenizer().encode(text).ids


def test_known_facts_are_mentioned_at_their_rates_and_nothing_else():
    facts = Facts("ship", "dark", "white", "blue")
    said = [parse(text) for text in say([facts] * 4000, seed=1)]
    assert all(part in (None, fact) for one in said for part, fact in zip(one, facts, strict=True))
    shares = [sum(one[i] is not None for one in said) / 4000 for i in range(4)]
    assert shares == pytest.approx([1, *MENTIONED], abs=0.03)
    both = sum(one.brightness is not None and one.colour is not None for one in said) / 4000
    assert both == pytest.approx(MENTIONED[0] * MENTIONED[1], abs=0.03)  # drawn apart
    assert set(say([Facts("ship")] * 20, seed=1)) == {"a photo of a ship"}


def test_captions_are_a_function_of_photos_and_seed():
    images = torch.zeros(1040, 3, 32, 32, dtype=torch.uint8)
    images[::2, 2] = 200
    labels = torch.arange(1040) % 10
    texts = captions_of(images, labels, 3)
    facts = facts_of_photos(images, labels)
    assert texts == say(facts, 3) != say(facts, 4)
    said = [parse(text) for text in texts]
    assert [CLASSES.index(one.name) for one in said] == labels.tolist()
    assert {one.background for one in said[::2]} == {None, "blue"}
    assert {one.background for one in said[1::2]} == {None, "black"}


def test_prompt_files_are_shuffled_by_the_seed_and_read_back(tmp_path):
    texts = [f"caption {i}" for i in range(30)]
    orders = []
    for seed in (0, 0, 1):
        write_prompts(texts, tmp_path / "prompts.txt", 20, seed)
        orders.append(read_prompts(tmp_path / "prompts.txt"))
    first, again, other = orders
    assert first == again != other
    assert len(set(first)) == 20
    assert set(first) < set(texts)
    assert first != sorted(first, key=texts.index)
    for count in (0, 31):
        with pytest.raises(UserError, match=f"count={count}"):
            write_prompts(texts, tmp_path / "prompts.txt", count)


@pytest.mark.parametrize(("split", "count"), [("train", 2000), ("test", 5000)])
def test_bundled_prompts_are_captions_of_all_classes_and_lengths(split, count):
    prompts = read_prompts(Path(asset_path()) / f"prompts_{split}.txt")
    assert len(prompts) == count
    classes = Counter(parse(prompt).name for prompt in prompts)
    assert set(classes) == set(CLASSES)
    assert min(classes.values()) > 0.08 * count
    lengths = Counter(len(prompt.split()) for prompt in prompts)
    assert set(lengths) == {5, 6, 7, 9, 10, 11}
    assert max(lengths.values()) < 0.4 * count
