"""Turn prompts into ids: text without markers, within a template's markers (docs/originals/dimoo.md, Prompt)."""

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

from tokenizers import AddedToken, Tokenizer

from migm.bases.layout import NAMES
from migm.bases.weights import locate
from migm.runtime.errors import UserError

TAGS = ("<system>", "</system>", "<user>", "</user>", "<uncondition>")
PIECES = re.compile(r"\w+|[^\w\s]+")
FEW = 64  # a vocabulary of at most this many words is listed in messages
SHOWN = 8  # number of unknown words that a message names


class Text(Protocol):
    """A text tokenizer."""

    vocabulary: frozenset[str]  # all words, or none if there are many
    unknown_id: int | None  # of unknown words

    def marker(self, name: str) -> int:
        """Return the id of a marker."""
        ...

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text, never those of markers, whatever the text contains."""
        ...

    def unknown(self, text: str) -> list[str]:
        """Return the words of a text that have no ids; signs and punctuation are not words."""
        ...


class TokenizerFile:
    """The text tokenizer of a `tokenizer.json`, without added ids or truncation.

    `names` are the texts of the fields of `markers`; those of them that the file knows must have the ids in `markers`.
    No prompt may contain these or `tags`.
    """

    def __init__(
        self,
        path: str | Path | None,
        markers: object,
        key: str,
        names: Mapping[str, str] = NAMES,
        tags: Sequence[str] = TAGS,
    ):
        file, self.origin = locate(path, key), f"{key}={path}"
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exceptions
            raise UserError(f"{self.origin} is no tokenizer.json ({error})") from error
        for marker, name in names.items():
            token_id = tokenizer.token_to_id(name)
            if token_id not in (None, getattr(markers, marker)):
                raise UserError(
                    f"base.markers.{marker}={getattr(markers, marker)}, but {name} is {token_id} in {self.origin}"
                )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        added = tokenizer.get_added_tokens_decoder()
        # Only special tokens can be encoded as text, and files declare some markers as plain words.
        tokenizer.add_special_tokens([AddedToken(token.content, special=True) for token in added.values()])
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer
        missing, words = getattr(tokenizer.model, "unk_token", None) or "", tokenizer.get_vocab(with_added_tokens=False)
        self.unknown_id: int | None = words.pop(missing, None)
        self.vocabulary = frozenset(words if len(words) <= FEW else ())
        marker_ids = {tokenizer.token_to_id(name) for name in (*tags, *names.values())}
        self.markers = {*added, *marker_ids} - {None, self.unknown_id}

    def marker(self, name: str) -> int:
        token_id = self.tokenizer.token_to_id(name)
        if token_id is None:
            raise UserError(f"{self.origin} lacks {name}, which belongs around every prompt: another model's file")
        return token_id

    def ids(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        if not self.markers.isdisjoint(ids):  # some markers are words of the vocabulary
            raise UserError(f"{text!r} holds a control marker of this base's language; write it in another way")
        return ids

    def unknown(self, text: str) -> list[str]:
        encoding, covered = self.tokenizer.encode(text, add_special_tokens=False), set[int]()
        for number, place in zip(encoding.ids, encoding.offsets, strict=True):
            if number != self.unknown_id:
                covered.update(range(*place))
        pieces = [piece for piece in PIECES.finditer(text) if not covered.issuperset(range(*piece.span()))]
        return [piece.group() for piece in pieces if any(map(_says_something, piece.group()))]


class Checksums:
    """A stand-in for a text tokenizer of models with random weights: a word's id is its checksum modulo `num_ids`."""

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


class Wording:
    """Prompts -> ids of their text alone.

    A prompt without any known word is refused: it would be drawn like every other such prompt.
    """

    def __init__(self, text: Text):
        self.text = text

    def ids(self, prompt: str) -> list[int]:
        """Return the ids of a prompt's text."""
        ids = self.text.ids(prompt)
        if prompt.strip() and set(ids) <= {self.text.unknown_id}:
            words = ", ".join(map(self._hinted, self.text.unknown(prompt))) or "signs alone"
            raise UserError(f"prompt={prompt}: this base knows nothing of it ({words}){self._known()}")
        return ids

    def left_out(self, prompts: Sequence[str]) -> str:
        """Return a clause about the words of the prompts that are ignored, empty if there are none."""
        unknown = [dict.fromkeys(self.text.unknown(prompt)) for prompt in prompts]
        words, num_prompts = Counter(word for of_prompt in unknown for word in of_prompt), sum(map(bool, unknown))
        if not words:
            return ""
        shown = [self._hinted(word) for word, _ in words.most_common(SHOWN)]
        more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
        where = f", in {num_prompts} of {len(prompts)} prompts" if len(prompts) > 1 else ""
        return f"this base does not know and leaves out {', '.join(shown)}{more}{where}{self._known()}"

    def _hinted(self, word: str) -> str:
        """Return an unknown word, followed by the most similar known word."""
        close = get_close_matches(word.lower(), self.text.vocabulary, 1)
        return f"{word} ({close[0]}?)" if close else word

    def _known(self) -> str:
        """List all known words, if they are few."""
        return f"; known are {', '.join(sorted(self.text.vocabulary))}" if self.text.vocabulary else ""


class PromptTemplate(Wording):
    """Prompts -> ids of `<system>{system}</system><user>{prompt}</user>`; no prompt is `<uncondition>`."""

    def __init__(self, text: Text, system: str):
        super().__init__(text)
        system_tag, system_end, user, user_end, none = map(text.marker, TAGS)
        self.before, self.after = [system_tag, *text.ids(system), system_end, user], [user_end]
        self.unconditional = [*self.before, none, *self.after]

    def __call__(self, prompt: str) -> list[int]:
        return [*self.before, *self.ids(prompt), *self.after]


def _says_something(sign: str) -> bool:
    """Return whether a character is a letter, digit or picture, not punctuation or a sign."""
    kind = unicodedata.category(sign)
    return kind[0] in "LMN" or kind == "So"
