"""Captions of 32x32 photos: simple facts computed from the pixels, written in a small fixed language.

An example is "a dark photo of a red truck on a gray background". The same rules caption photos and
judge whether a generated image shows the facts of its prompt.
"""

import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from migm.cifar10.classes import CLASSES
from migm.runtime.errors import UserError
from migm.runtime.files import content_hash

BRIGHTNESS = ("dark", "bright")
COLOURS = ("red", "orange", "yellow", "green", "blue", "brown", "white", "gray", "black")
WORDS = ("a", "an", "photo", "of", "on", "background", *BRIGHTNESS, *CLASSES, *COLOURS)
NO_COLOUR = len(COLOURS)  # purple and pink, too rare in CIFAR-10 for a name


@dataclass(frozen=True)
class Rules:
    """Thresholds of the facts, chosen on the CIFAR-10 training photos by eye and by the share of photos.

    Shares, values and chroma are in [0, 1], hues in degrees. Bin i of `hue_edges` is named
    `vivid[i]` from a chroma of `min_chroma[i]` upwards and `dull[i]` below.
    """

    version: int = 1  # raise when `brightness_and_colours` changes but no number here does
    dark: float = 0.35  # 13% of the photos have a smaller mean luminance
    bright: float = 0.62  # 12% of the photos have a larger one
    black_value: float = 0.2
    white_value: float = 0.78
    min_saturation: float = 0.2  # below: gray, white or black
    hue_edges: tuple[float, ...] = (16, 42, 52, 68, 165, 265, 340)
    vivid: tuple[str, ...] = ("red", "orange", "yellow", "yellow", "green", "blue", "", "red")
    dull: tuple[str, ...] = ("brown", "brown", "brown", "green", "green", "blue", "", "brown")
    min_chroma: tuple[float, ...] = (0.27, 0.4, 0.3, 0.3, 0, 0, 0, 0.27)
    border: int = 4  # pixels on each side that are background
    margin: int = 8  # pixels on each side that are not the object
    near: float = 0.15  # centre pixels this close to the border's mean in every channel are background too
    min_background: float = 0.5  # least share of the border in its most common colour
    min_excluded: float = 0.5  # from this share on, centre pixels of that colour are background too
    min_object: float = 0.3  # least share of the centre that is not background
    min_colour: float = 0.5  # least share of the object's pixels in their most common colour


RULES = Rules()  # for captions of photos
# For generated images: captions state only clear facts, and decoding blurs them a little.
LENIENT = replace(RULES, dark=0.38, bright=0.59, min_background=0.4, min_object=0.2, min_colour=0.4)


class Facts(NamedTuple):
    """Content of a caption; None where it says nothing."""

    name: str
    brightness: str | None = None
    colour: str | None = None
    background: str | None = None


def pixel_colours(images: Tensor, rules: Rules = RULES) -> Tensor:
    """Return the index into COLOURS, or NO_COLOUR, of every pixel: uint8 (b, 3, h, w) -> int64 (b, h, w)."""
    red, green, blue = (images.float() / 255).unbind(1)
    value, largest = torch.stack([red, green, blue], 1).max(1)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    d = chroma.clamp(min=1e-6)
    sector = torch.where(largest == 1, (blue - red) / d + 2, (red - green) / d + 4)
    hue = 60 * torch.where(largest == 0, ((green - blue) / d) % 6, sector)
    place = torch.bucketize(hue, hue.new_tensor(rules.hue_edges), right=True)
    vivid, dull = (
        torch.tensor([COLOURS.index(name) if name else NO_COLOUR for name in names], device=images.device)
        for names in (rules.vivid, rules.dull)
    )
    named = torch.where(chroma >= hue.new_tensor(rules.min_chroma)[place], vivid[place], dull[place])
    neutral = torch.where(value >= rules.white_value, COLOURS.index("white"), COLOURS.index("gray"))
    named = torch.where(chroma >= rules.min_saturation * value, named, neutral)
    return named.masked_fill(value < rules.black_value, COLOURS.index("black"))


def brightness_and_colours(images: Tensor, rules: Rules = RULES) -> tuple[Tensor, Tensor, Tensor]:
    """Return brightness, object colour and background colour of uint8 images (b, 3, h, w), each int64 (b,).

    Values index BRIGHTNESS and COLOURS; -1 where nothing stands out. Centre pixels of the background's
    colour count as background: a bird in a green bush is not a green bird.
    """
    weights = images.new_tensor([0.299, 0.587, 0.114], dtype=torch.float32)
    luminance = (images.float() / 255).mean((2, 3)) @ weights
    brightness = torch.full_like(luminance, -1, dtype=torch.long)
    brightness = brightness.masked_fill(luminance < rules.dark, 0).masked_fill(luminance > rules.bright, 1)
    palette = torch.arange(NO_COLOUR + 1, device=images.device)
    votes = (pixel_colours(images, rules)[..., None] == palette).float()  # (b, h, w, colours)
    ring = torch.ones(votes.shape[1:3], dtype=torch.bool, device=images.device)
    ring[rules.border : -rules.border, rules.border : -rules.border] = False
    share, background = votes[:, ring].mean(1)[:, :NO_COLOUR].max(1)
    inside = slice(rules.margin, -rules.margin)
    surroundings = images[:, :, ring].float().mean(2)[:, :, None, None]
    apart = ((images[:, :, inside, inside].float() - surroundings).abs().amax(1) > 255 * rules.near)[..., None]
    excluded = background.masked_fill(share < rules.min_excluded, -1)
    foreign = palette != excluded[:, None]
    centre = (votes[:, inside, inside] * apart).mean((1, 2)) * foreign
    rest = centre.sum(1)
    most, colour = centre[:, :NO_COLOUR].max(1)
    unclear = (rest < rules.min_object) | (most < rules.min_colour * rest)
    return brightness, colour.masked_fill(unclear, -1), background.masked_fill(share < rules.min_background, -1)


def facts_of(images: Tensor, names: Sequence[str], rules: Rules = RULES) -> list[Facts]:
    """Return the facts of images whose classes are `names`."""
    columns = zip(names, *(column.tolist() for column in brightness_and_colours(images, rules)), strict=True)
    brightness, colours = (*BRIGHTNESS, None), (*COLOURS, None)  # index -1 is the last
    return [Facts(name, brightness[b], colours[c], colours[g]) for name, b, c, g in columns]


def caption(facts: Facts) -> str:
    """Write the facts in words; `parse` is the inverse."""
    photo = _with_article(f"{facts.brightness} photo" if facts.brightness else "photo")
    thing = _with_article(f"{facts.colour} {facts.name}" if facts.colour else facts.name)
    tail = f" on {_with_article(facts.background)} background" if facts.background else ""
    return f"{photo} of {thing}{tail}"


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


_SENTENCE = re.compile(
    r"an? (?:(?P<brightness>{b}) )?photo of an? (?:(?P<colour>{c}) )?(?P<name>{n})"
    r"(?: on an? (?P<background>{c}) background)?".format(
        b="|".join(BRIGHTNESS), c="|".join(COLOURS), n="|".join(CLASSES)
    )
)


def parse(text: str) -> Facts:
    """Return the facts that a caption mentions; UserError for any other text."""
    match = _SENTENCE.fullmatch(text)
    if not match:
        raise UserError(
            f"evalset.inputs: a metric reads captions such as 'a dark photo of a red truck on a gray background' "
            f"(CIFAR-10 classes; {', '.join(COLOURS)}), which {text!r} is not"
        )
    return Facts(**match.groupdict())


def rules_hash() -> str:
    """Return twelve hexadecimal digits that identify the words and rules of the facts."""
    return content_hash(repr((BRIGHTNESS, CLASSES, COLOURS, astuple(RULES), astuple(LENIENT))))
