"""Words of the small text-to-image base: its tokenizer, and its training captions."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor

from migm.cifar10.captions import WORDS, Facts, caption, facts_of
from migm.cifar10.classes import CLASSES
from migm.runtime.errors import UserError
from migm.runtime.files import write_atomic

UNKNOWN = "[UNK]"
SPECIAL = (
    "<system>",
    "</system>",
    "<user>",
    "</user>",
    "<|mdm_mask|>",
    "<|reserved_token_0|>",  # ends a row of image codes
    "<IMAGE>",
    "</IMAGE>",
    "<uncondition>",
    "<answer>",
    "</answer>",
)
MENTIONED = (0.7, 0.8, 0.7)  # shares of captions that mention brightness, colour and background if these are known


def build_tokenizer() -> Tokenizer:
    """Return a tokenizer with an id per word of the captions and per SPECIAL (docs/originals/dimoo.md, Sequence).

    Case is ignored. Other words and punctuation become UNKNOWN. Encoding adds no tokens.
    """
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate((UNKNOWN, *WORDS))}, unk_token=UNKNOWN))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL])
    return tokenizer


def facts_of_photos(images: Tensor, labels: Tensor) -> list[Facts]:
    """Return the facts of CIFAR-10 photos, uint8 (n, 3, 32, 32) with labels (n,); 50,000 take some 20 s."""
    parts = zip(images.split(1000), labels.split(1000), strict=True)
    return [facts for part, names in parts for facts in facts_of(part, [CLASSES[i] for i in names.tolist()])]


def say(facts: Sequence[Facts], seed: int) -> list[str]:
    """Return a caption per photo; each known fact but the class is mentioned at random (MENTIONED)."""
    kept = torch.rand(len(facts), 3, generator=torch.Generator().manual_seed(seed)) < torch.tensor(MENTIONED)
    return [caption(_kept(photo_facts, keep)) for photo_facts, keep in zip(facts, kept.tolist(), strict=True)]


def _kept(facts: Facts, keep: Sequence[bool]) -> Facts:
    return Facts(facts.name, *(fact if kept else None for fact, kept in zip(facts[1:], keep, strict=True)))


def captions_of(images: Tensor, labels: Tensor, seed: int) -> list[str]:
    """Return one caption per photo, determined by the photos and the seed."""
    return say(facts_of_photos(images, labels), seed)


def write_prompts(captions: Sequence[str], path: str | Path, count: int, seed: int = 0) -> None:
    """Write `count` captions to a prompt file, one per line, shuffled by the seed; UserError for a bad count."""
    if not 1 <= count <= len(captions):
        raise UserError(f"count={count} should be from 1 to the {len(captions)} captions")
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(seed))[:count]
    write_atomic(Path(path), "".join(f"{captions[i]}\n" for i in order.tolist()))
