"""Offer MMaDA, text to image, as a base (docs/originals/mmada.md, Vocabulary to Attention to padding)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from migm.bases.layout import Layout
from migm.bases.linear import LinearKind
from migm.bases.llada import LLaDAConfig, read_config
from migm.bases.magvit import MagvitV2
from migm.bases.prompted import PromptedLLaDA
from migm.bases.words import Checksums, Text, TokenizerFile, Wording
from migm.runtime.device import DeviceName, DTypeName
from migm.runtime.errors import UserError
from migm.runtime.kinds import Count, Whole

KEY = "base.text_tokenizer"


@dataclass(frozen=True)
class TaskMarkers:
    """Ids of the tokens that are neither text nor image codes, under MMaDA's names."""

    mask: int
    bos: int
    eos: int
    soi: int  # soi and eoi enclose the image
    eoi: int
    t2i: int  # the task, text to image; begins every prompt
    pad: int  # stands before prompts if padding is attended


NAMES = {"mask": "<|mdm_mask|>", "bos": "<|startoftext|>", "eos": "<|endoftext|>"}  # the others have reserved names


class TaskPrompt(Wording):
    """Prompts -> ids `t2i bos <text> eos`, at most `max_text_len` + 1 of them; longer texts are cut.

    With `padded` they are exactly so many, with `pad` on the left.
    """

    def __init__(self, text: Text, markers: TaskMarkers, max_text_len: int, padded: bool):
        super().__init__(text)
        self.markers, self.num_rows, self.padded = markers, max_text_len + 1, padded
        self.max_ids = self.num_rows - 3  # of text
        self.unconditional = self.around([])

    def __call__(self, prompt: str) -> list[int]:
        return self.around(self.ids(prompt))

    def around(self, ids: Sequence[int]) -> list[int]:
        """Return the ids of a text within its markers; one that begins with bos gets no other."""
        m = self.markers
        row = [m.t2i, *([] if ids[:1] == [m.bos] else [m.bos]), *ids, m.eos]
        if len(row) > self.num_rows:
            row = [*row[: self.num_rows - 1], m.eos]
        return [m.pad] * (self.num_rows - len(row) if self.padded else 0) + row

    def left_out(self, prompts: Sequence[str]) -> str:
        """Return a clause about unknown words and about the ends of prompts that are cut."""
        over = [count for prompt in prompts if (count := len(self.text.ids(prompt)) - self.max_ids) > 0]
        clauses = [super().left_out(prompts)]
        if over:
            ends = f"the last {over[0]} of the prompt" if len(prompts) == 1 else f"up to {max(over)} more"
            where = f" at the end of {len(over)} of {len(prompts)} prompts" if len(prompts) > 1 else ""
            read = f"this base reads {self.max_ids} ids of a text (base.max_text_len={self.num_rows - 1})"
            clauses.append(f"{read} and leaves out {ends}{where}")
        return "; ".join(filter(None, clauses))


class MMaDA(PromptedLLaDA):
    """A frozen LLaDA over `t2i bos <text> eos`, `soi`, image codes, `eoi`, with a text tokenizer and MAGVIT-v2.

    `weights` is a checkpoint, a folder or `hf://owner/repository`, with safetensors and a `config.json` of model type
    mmada that has to agree with `transformer`. `text_tokenizer` is its `tokenizer.json`, `tokenizer_weights` the image
    tokenizer's file. `random_weights` builds the model without any of these files; if then the text tokenizer is not a
    local file, every word of a prompt becomes an id by its checksum.

    Image code c has the id `code_offset` + c, which is neither at the end of the tables nor behind LLaDA's own rows.
    The padding before a prompt is left out, which changes nothing if it is masked as in the present original code. With
    `attend_padding` it is read like text, as in the code at the time of the published weights: both guidance halves are
    then equally long and run in one pass. `one_pass` and `linear` are as in `PromptedLLaDA`.
    """

    template: TaskPrompt

    def __init__(
        self,
        transformer: LLaDAConfig,
        tokenizer: MagvitV2,
        vocab_size: Count,
        code_offset: Count,
        height: Count,
        width: Count,
        markers: Mapping[str, Whole],
        max_text_len: Count = 512,
        attend_padding: bool = False,
        weights: str | Path | None = None,
        text_tokenizer: str | Path | None = None,
        tokenizer_weights: str | Path | None = None,
        random_weights: bool = False,
        one_pass: bool = False,
        dtype: DTypeName = "auto",
        tokenizer_dtype: DTypeName | None = None,
        device: DeviceName = "auto",
        linear: LinearKind = "plain",
    ):
        self.markers, self.attend_padding = _markers(markers, code_offset), attend_padding
        if max_text_len < 2:
            raise UserError(f"base.max_text_len={max_text_len} leaves no room for t2i, bos and eos; give 2 or more")
        if vocab_size != tokenizer.num_codes:
            sides = f"{tokenizer.num_codes} codes of base.tokenizer.bits={tokenizer.bits}"
            raise UserError(f"base.vocab_size={vocab_size}, but the image tokenizer has {sides}")
        if code_offset + vocab_size > transformer.embedding_size:
            raise UserError(
                f"base.code_offset={code_offset}: the {vocab_size} image codes end at row {code_offset + vocab_size}, "
                f"base.transformer.embedding_size={transformer.embedding_size} has no such row"
            )
        super().__init__(
            transformer,
            tokenizer,
            vocab_size,
            height,
            width,
            code_offset,
            weights,
            tokenizer_weights,
            one_pass or attend_padding,
            dtype,
            tokenizer_dtype,
            device,
            linear,
            random_weights,
        )
        if random_weights and not Path(str(text_tokenizer)).is_file():
            text: Text = Checksums(min(markers.values()))
        else:
            text = _text(text_tokenizer, self.markers, code_offset)
        self._speak(TaskPrompt(text, self.markers, max_text_len, attend_padding), self._between())

    def _between(self) -> Layout:
        """Return the layout of the image: a marker, its codes row by row, a marker."""
        m, num_tokens = self.markers, self.spec.num_tokens
        block = torch.tensor([m.soi, *[m.mask] * num_tokens, m.eoi])
        return Layout(block, 1 + torch.arange(num_tokens), self.offset, m.mask, self.device)

    def _prompt(self, condition: Int[Tensor, "b q"]) -> Bool[Tensor, "b q"]:
        return super()._prompt(condition) & (condition != self.markers.pad)

    def _check_config(self, config: LLaDAConfig, path: Path) -> None:
        said = read_config(path)
        if (kind := said.get("model_type")) != "mmada":
            raise UserError(f"base.weights: {path} is a checkpoint of model_type={kind!r}, MMaDA's are 'mmada'")
        config.check(path)
        height, width = (side * self.stride for side in self.spec.grid)
        ours = {
            "codebook_size": (self.spec.vocab_size, f"base.vocab_size={self.spec.vocab_size}"),
            "num_vq_tokens": (self.spec.num_tokens, f"base.height={height}, base.width={width}"),
            "mask_token_id": (self.markers.mask, f"base.markers.mask={self.markers.mask}"),
        }
        for name, (value, setting) in ours.items():
            if said.get(name, value) != value:
                raise UserError(f"{setting} makes {name} {value}, but {path} says {said[name]}")

    def _load_tokenizer(self, tokenizer: MagvitV2, weights: str | Path | None) -> None:
        tokenizer.load(weights, "base.tokenizer_weights")

    def _settings(self) -> dict[str, Any]:
        words = {"template": self.template.unconditional, "max_text_len": self.template.num_rows - 1}
        return {**words, "grid": self.spec.grid, "offset": self.offset, "markers": asdict(self.markers)}


def _markers(given: Mapping[str, int], code_offset: int) -> TaskMarkers:
    """Return the markers; missing, unknown and equal ones, and ids of image codes, are refused."""
    names = [field.name for field in fields(TaskMarkers)]
    if set(given) != set(names):
        raise UserError(f"base.markers={{{', '.join(given)}}} must be {', '.join(names)}")
    for name, number in given.items():
        if number >= code_offset:
            raise UserError(f"base.markers.{name}={number} must be below base.code_offset={code_offset}")
        if list(given.values()).count(number) > 1:
            raise UserError(f"base.markers.{name}={number} is the id of another marker too")
    return TaskMarkers(**given)


def _text(path: str | Path | None, markers: TaskMarkers, code_offset: int) -> TokenizerFile:
    """Return the text tokenizer; a file without MMaDA's markers, or with ids of image codes, is refused."""
    text = TokenizerFile(path, markers, KEY, NAMES, ())
    for name in ("bos", "eos"):
        text.marker(NAMES[name])  # refuses a file without it
    if (last := max(text.tokenizer.get_vocab().values())) >= code_offset:
        raise UserError(
            f"base.code_offset={code_offset} is the first image code, but {text.origin} has ids up to {last}"
        )
    return text
