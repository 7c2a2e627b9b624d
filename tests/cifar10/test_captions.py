"""What is said of a photo: brightness and colours of painted squares, and captions as sentences."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from migm.cifar10 import captions
from migm.cifar10.captions import BRIGHTNESS, COLOURS, LENIENT, Facts, brightness_and_colours, caption, facts_of, parse
from migm.cifar10.classes import CLASSES
from migm.runtime.errors import UserError

PAINT = {
    "red": (200, 20, 30),
    "orange": (240, 130, 20),
    "yellow": (240, 220, 30),
    "green": (60, 140, 50),
    "blue": (50, 90, 200),
    "brown": (120, 80, 50),
    "white": (235, 235, 240),
    "gray": (128, 128, 128),
    "black": (15, 15, 20),
    "pink": (240, 110, 200),
}


def square(colour: str, background: str, side: int = 16) -> torch.Tensor:
    """A square of `side` pixels in the middle of an image of 32."""
    image = torch.tensor(PAINT[background], dtype=torch.uint8)[:, None, None].repeat(1, 32, 32)
    inside = slice(16 - side // 2, 16 + side // 2)
    image[:, inside, inside] = torch.tensor(PAINT[colour], dtype=torch.uint8)[:, None, None]
    return image


@pytest.mark.parametrize(("colour", "background"), product(COLOURS, COLOURS))
def test_a_square_has_its_colour_and_that_of_its_ground(colour, background):
    (facts,) = facts_of(square(colour, background)[None], ["cat"])
    assert facts.name == "cat"
    assert (facts.colour, facts.background) == (None if colour == background else colour, background)


def test_colours_without_a_name_and_small_objects_are_not_said():
    shown = facts_of(
        torch.stack([square("pink", "gray"), square("gray", "pink"), square("red", "blue", 8)]), ["cat"] * 3
    )
    assert [facts.colour for facts in shown] == [None, "gray", None]
    assert [facts.background for facts in shown] == ["gray", None, "blue"]
    assert brightness_and_colours(square("gray", "pink")[None])[2] == -1


def test_no_colour_is_said_where_none_prevails():
    image = square("red", "white")
    image[:, :, :16] = square("blue", "black")[:, :, :16]  # halves, and then thirds
    assert facts_of(image[None], ["cat"])[0].background in ("white", "black")  # half is enough
    image[:, 13:19] = square("green", "gray")[:, 13:19]
    (facts,) = facts_of(image[None], ["cat"])
    assert (facts.colour, facts.background) == (None, None)


def test_the_background_is_that_of_the_outer_pixels():
    assert facts_of(square("white", "blue", 28)[None], ["cat"]) == [Facts("cat", "bright", "white", "blue")]


def test_what_looks_like_the_background_is_not_the_object():
    grounds = torch.tensor([[100, 220, 90], [196, 196, 196]], dtype=torch.uint8)
    images = grounds[:, :, None, None].repeat(1, 1, 32, 32)
    images[0, :, 8:16, 8:24] = torch.tensor([40, 110, 35], dtype=torch.uint8)[:, None, None]  # another green
    images[0, :, 16:24, 8:24] = torch.tensor(PAINT["brown"], dtype=torch.uint8)[:, None, None]
    images[1, :, 8:24, 8:24] = 205  # white, but nearly the gray around it
    assert [facts.colour for facts in facts_of(images, ["cat"] * 2)] == ["brown", None]


@pytest.mark.parametrize(("level", "said"), [(0, "dark"), (88, "dark"), (91, None), (157, None), (160, "bright")])
def test_brightness_is_by_the_mean_luminance(level, said):
    assert facts_of(torch.full((1, 3, 32, 32), level, dtype=torch.uint8), ["cat"])[0].brightness == said


def test_green_counts_most_and_blue_least_in_luminance():
    images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    images[range(3), range(3)] = 255  # luminance 0.299, 0.587, 0.114
    assert brightness_and_colours(images)[0].tolist() == [0, -1, 0]


def test_images_are_measured_one_by_one_and_whatever_their_side():
    images = torch.randint(0, 256, (40, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(images.float(), size=(32, 32), mode="nearest").to(torch.uint8)
    together = torch.stack(brightness_and_colours(images))
    torch.testing.assert_close(
        together, torch.cat([torch.stack(brightness_and_colours(image[None])) for image in images], 1)
    )
    torch.testing.assert_close(together, torch.stack(brightness_and_colours(images.flip(-1))))
    assert (together >= 0).any()
    assert (together < 0).any()


def test_what_is_said_is_also_seen_by_the_lenient_rules():
    images = torch.rand(300, 3, 5, 5, generator=torch.Generator().manual_seed(1)).pow(0.5) * 255
    images = torch.nn.functional.interpolate(images, size=(32, 32), mode="bilinear").to(torch.uint8)
    for said, seen in zip(brightness_and_colours(images), brightness_and_colours(images, LENIENT), strict=True):
        assert (said[said >= 0] == seen[said >= 0]).all()
        assert ((said < 0) & (seen >= 0)).any()


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        (Facts("truck"), "a photo of a truck"),
        (Facts("airplane"), "a photo of an airplane"),
        (Facts("cat", "dark", "orange"), "a dark photo of an orange cat"),
        (Facts("ship", "bright", None, "orange"), "a bright photo of a ship on an orange background"),
        (Facts("automobile", None, "red", "gray"), "a photo of a red automobile on a gray background"),
    ],
)
def test_captions_are_sentences_with_the_right_articles(facts, text):
    assert caption(facts) == text


def test_every_caption_is_parsed_back():
    every = [Facts(*x) for x in product(CLASSES, (None, *BRIGHTNESS), (None, *COLOURS), (None, *COLOURS))]
    texts = [caption(facts) for facts in every]
    assert len(set(texts)) == 3000
    assert [parse(text) for text in texts] == every


@pytest.mark.parametrize(
    "text",
    ["", "a truck", "a photo of a car", "a photo of a pink cat", "a photo of a cat on a road", "a photo of a cat "],
)
def test_other_sentences_are_refused_by_name(text):
    with pytest.raises(UserError, match=rf"evalset\.inputs.*{text!r}"):
        parse(text)


@pytest.mark.parametrize("name", ["RULES", "LENIENT"])
def test_the_hash_follows_the_rules(monkeypatch, name):
    before = captions.rules_hash()
    monkeypatch.setattr(
        captions, name, replace(getattr(captions, name), min_chroma=(0.27, 0.4, 0.3, 0.3, 0, 0, 0, 0.28))
    )
    assert captions.rules_hash() != before
