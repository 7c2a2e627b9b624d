"""Prompts -> ids: text without markers, framed by those of a template (docs/originals/dimoo.md, Prompt)."""

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

from tokenizers import AddedToken, Tokenizer

from migm.bases.layout import NAMES, Markers
from migm.bases.weights import locate
from migm.runtime.errors import UserError

TAGS = ("<system>", "</system>", "<user>", "</user>", "<uncondition>")
PIECES = re.compile(r"\w+|[^\w\s]+")
FEW = 64  # a vocabulary of at most so many words is told whole
SHOWN = 8  # unknown words that are named


class Text(Protocol):
    """A text tokenizer."""

    vocabulary: frozenset[str]  # all its words, or none where they are many
    unknown_id: int | None  # of what it does not know

    def marker(self, name: str) -> int:
        """The id of a marker."""
        ...

    def ids(self, text: str) -> list[int]:
        """The ids of a text, of which none is a marker's, whatever the text says."""
        ...

    def unknown(self, text: str) -> list[str]:
        """The words that its ids do not tell; signs and punctuation are no words."""
        ...


class TokenizerFile:
    """The text tokenizer of a `tokenizer.json`; it adds and cuts nothing. Other ids of `markers` are refused."""

    def __init__(self, path: str | Path | None, markers: Markers, key: str):
        file, self.origin = locate(path, key), f"{key}={path}"
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exceptions
            raise UserError(f"{self.origin} is no tokenizer.json ({error})") from error
        for marker, name in NAMES.items():
            found = tokenizer.token_to_id(name)
            if found not in (None, getattr(markers, marker)):
                raise UserError(
                    f"base.markers.{marker}={getattr(markers, marker)}, but {name} is {found} in {self.origin}"
                )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        added = tokenizer.get_added_tokens_decoder()
        # Only what is special can be told to be text, and files declare some markers as plain words.
        tokenizer.add_special_tokens([AddedToken(token.content, special=True) for token in added.values()])
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer
        missing, words = getattr(tokenizer.model, "unk_token", None) or "", tokenizer.get_vocab(with_added_tokens=False)
        self.unknown_id: int | None = words.pop(missing, None)
        self.vocabulary = frozenset(words if len(words) <= FEW else ())
        found = {tokenizer.token_to_id(name) for name in (*TAGS, *NAMES.values())}
        self.markers = {*added, *found} - {None, self.unknown_id}

    def marker(self, name: str) -> int:
        found = self.tokenizer.token_to_id(name)
        if found is None:
            raise UserError(f"{self.origin} lacks {name}, which belongs around every prompt: another model's file")
        return found

    def ids(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        if not self.markers.isdisjoint(ids):  # the vocabulary itself holds them
            raise UserError(f"{text!r} holds a control marker of this base's language; write it in another way")
        return ids

    def unknown(self, text: str) -> list[str]:
        made, told = self.tokenizer.encode(text, add_special_tokens=False), set[int]()
        for number, place in zip(made.ids, made.offsets, strict=True):
            if number != self.unknown_id:
                told.update(range(*place))
        pieces = [found for found in PIECES.finditer(text) if not told.issuperset(range(*found.span()))]
        return [found.group() for found in pieces if any(map(_says_something, found.group()))]


class Checksums:
    """A stand-in for models with random weights: every word or sign is an id below `num_ids`, by its checksum."""

    vocabulary: frozenset[str] = frozenset()
    unknown_id: int | None = None

    def __init__(self, num_ids: int):
        self.num_ids = num_ids

    def marker(self, name: str) -> int:
        return zlib.crc32(name.encode()) % self.num_ids

    def ids(self, text: str) -> list[int]:
        return [self.marker(word) for word in re.findall(r"\w+|[^\w\s]", text)]

    def unknown(self, text: str) -> list[str]:
        return []


class PromptTemplate:
    """Prompts -> ids of `<system>{system}</system><user>{prompt}</user>`, where no prompt is `<uncondition>`.

    A prompt of which no word is known is refused: it would be drawn like any other such one.
    """

    def __init__(self, text: Text, system: str):
        self.text = text
        system_tag, system_end, user, user_end, none = map(text.marker, TAGS)
        self.before, self.after = [system_tag, *text.ids(system), system_end, user], [user_end]
        self.unconditional = [*self.before, none, *self.after]

    def __call__(self, prompt: str) -> list[int]:
        ids = self.text.ids(prompt)
        if prompt.strip() and set(ids) <= {self.text.unknown_id}:
            words = ", ".join(map(self._hinted, self.text.unknown(prompt))) or "signs alone"
            raise UserError(f"prompt={prompt}: this base knows nothing of it ({words}){self._known()}")
        return [*self.before, *ids, *self.after]

    def left_out(self, prompts: Sequence[str]) -> str:
        """What of the prompts is left out, as a clause; empty where nothing is."""
        each = [dict.fromkeys(self.text.unknown(prompt)) for prompt in prompts]
        words, of = Counter(word for unknown in each for word in unknown), sum(map(bool, each))
        if not words:
            return ""
        shown = [self._hinted(word) for word, _ in words.most_common(SHOWN)]
        more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
        where = f", in {of} of {len(prompts)} prompts" if len(prompts) > 1 else ""
        return f"this base does not know and leaves out {', '.join(shown)}{more}{where}{self._known()}"

    def _hinted(self, word: str) -> str:
        """An unknown word, and the one that may be meant."""
        close = get_close_matches(word.lower(), self.text.vocabulary, 1)
        return f"{word} ({close[0]}?)" if close else word

    def _known(self) -> str:
        """All words that are known, where those are few."""
        return f"; known are {', '.join(sorted(self.text.vocabulary))}" if self.text.vocabulary else ""


def _says_something(sign: str) -> bool:
    """Letters, digits and pictures do, punctuation and signs do not."""
    kind = unicodedata.category(sign)
    return kind[0] in "LMN" or kind == "So"
