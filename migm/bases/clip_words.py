"""Turn prompts into the ids of a CLIP text encoder, padded to all its positions (docs/originals/amused.md, Text)."""

import re
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from migm.bases.weights import locate
from migm.runtime.errors import UserError
from migm.runtime.extras import optional
from migm.runtime.files import content_hash

CONFIG, FAST, SLOW = "tokenizer_config.json", "tokenizer.json", ("vocab.json", "merges.txt")
SPECIAL = "special_tokens_map.json"  # absent in newer folders


class Words(Protocol):
    """A tokenizer of prompts that gives all of them the same length."""

    def __call__(self, prompt: str) -> list[int]:
        """Return the ids of a prompt, its markers and padding included."""
        ...

    def left_out(self, prompts: Sequence[str]) -> str:
        """Return a clause about prompts that are cut, empty if there are none."""
        ...

    def fingerprint(self) -> str:
        """Return a text that identifies how prompts become ids."""
        ...


class _Padded:
    """Ids of a prompt between two markers, cut before the second one and padded to `length`."""

    begin: int
    end: int
    pad: int
    length: int

    def body(self, prompt: str) -> list[int]:
        """Return the ids of a prompt alone."""
        raise NotImplementedError

    def __call__(self, prompt: str) -> list[int]:
        ids = [self.begin, *self.body(prompt)[: self.length - 2], self.end]
        return ids + [self.pad] * (self.length - len(ids))

    def left_out(self, prompts: Sequence[str]) -> str:
        most = self.length - 2
        cut = [(prompt, n) for prompt in prompts if (n := len(self.body(prompt))) > most]
        if not cut:
            return ""
        prompt, n = cut[0]
        shown = prompt if len(prompt) <= 40 else f"{prompt[:40]}..."
        of = f"{len(cut)} of {len(prompts)} prompts are" if len(prompts) > 1 else "the prompt is"
        return f"{of} cut: the text encoder reads {most} tokens, and {shown!r} has {n}"


class CLIPWords(_Padded):
    """The tokenizer of a folder or hub address: `vocab.json` and `merges.txt`, or `tokenizer.json`.

    The id of the padding is what the folder's `tokenizer_config.json` or `special_tokens_map.json` says, since CLIP
    encoders differ in it. `vocab_size` is that of the encoder, whose last id has to be the end marker.
    """

    def __init__(self, folder: str | Path | None, length: int, vocab_size: int, key: str):
        if folder is None:
            raise UserError(f"{key} is not set: a folder or hf://owner/repository/folder with {', '.join(SLOW)}")
        self.origin, self.length = f"{key}={folder}", length
        place = _files(folder, key)
        try:
            library = optional("transformers", key).CLIPTokenizer
            self.tokenizer: Any = library.from_pretrained(place, local_files_only=True)
        except UserError:
            raise
        except Exception as error:  # the library raises plain Exceptions
            raise UserError(f"{self.origin} is no tokenizer of CLIP ({str(error).strip().splitlines()[0]})") from error
        self.begin, self.end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        self.pad = self.tokenizer.pad_token_id
        known = len(self.tokenizer)
        if known != vocab_size:
            raise UserError(f"{self.origin} has {known} ids, the text encoder base.text.vocab_size={vocab_size}")
        if self.end != vocab_size - 1 or self.pad is None:
            raise UserError(
                f"{self.origin}: its end marker has id {self.end} instead of the last, {vocab_size - 1}; only CLIP's "
                "layout is supported"
            )

    def body(self, prompt: str) -> list[int]:
        ids = self.tokenizer(prompt, add_special_tokens=False).input_ids
        if self.begin in ids or self.end in ids:
            raise UserError(f"prompt={prompt!r} holds a control marker of CLIP; write it in another way")
        return ids

    def fingerprint(self) -> str:
        return content_hash(f"{self.tokenizer.backend_tokenizer.to_str()}|{self.pad}|{self.length}")


def _files(folder: str | Path, key: str) -> Path:
    """Return the local folder of a tokenizer, with its files fetched."""
    config = locate(f"{folder}/{CONFIG}", key)  # without it the padding would be guessed
    for names in (SLOW, (FAST,)):
        try:
            for name in names:
                locate(f"{folder}/{name}", key)
            break
        except FileNotFoundError as error:
            missing = error
    else:
        raise missing
    with suppress(FileNotFoundError):  # without it the config names all markers
        locate(f"{folder}/{SPECIAL}", key)
    return config.parent


class PaddedChecksums(_Padded):
    """A stand-in for models with random weights: a word's id is its checksum."""

    def __init__(self, vocab_size: int, length: int):
        self.begin, self.end, self.pad = vocab_size - 2, vocab_size - 1, 0
        self.length = length

    def body(self, prompt: str) -> list[int]:
        words = re.findall(r"\w+|[^\w\s]", prompt.lower())
        return [1 + zlib.crc32(word.encode()) % (self.begin - 1) for word in words]

    def fingerprint(self) -> str:
        return f"checksums {self.end} {self.length}"
