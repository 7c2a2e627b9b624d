"""Offer Lumina-DiMOO, text to image, as a base (docs/originals/dimoo.md, Transformer to Sampler)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from migm.bases.amused import AmusedVQ
from migm.bases.layout import Markers, in_rows
from migm.bases.linear import LinearKind
from migm.bases.llada import LLaDAConfig
from migm.bases.prompted import PromptedLLaDA
from migm.bases.tokenizer import ConvVQ
from migm.bases.words import Checksums, PromptTemplate, TokenizerFile
from migm.runtime.device import DeviceName, DTypeName
from migm.runtime.kinds import Count, Whole


class LuminaDiMOO(PromptedLLaDA):
    """A frozen LLaDA transformer over prompt and image tokens, with a text tokenizer and an image tokenizer.

    `weights` is a checkpoint, a folder or `hf://owner/repository`, with safetensors and a `config.json` that has to
    agree with `transformer`. `text_tokenizer` is a `tokenizer.json`, `tokenizer_weights` the image tokenizer's file.
    `random_weights` builds the model without any of these files; if then the text tokenizer is not a local file, every
    word of a prompt becomes an id by its checksum. The last `vocab_size` ids are the image codes. `one_pass` and
    `linear` are as in `PromptedLLaDA`.
    """

    def __init__(
        self,
        transformer: LLaDAConfig,
        tokenizer: AmusedVQ | ConvVQ,
        vocab_size: Count,
        height: Count,
        width: Count,
        markers: Mapping[str, Whole],
        system: str,
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
        super().__init__(
            transformer,
            tokenizer,
            vocab_size,
            height,
            width,
            transformer.embedding_size - vocab_size,
            weights,
            tokenizer_weights,
            one_pass,
            dtype,
            tokenizer_dtype,
            device,
            linear,
            random_weights,
        )
        marker_ids = Markers(**markers)
        if random_weights and not Path(str(text_tokenizer)).is_file():
            text = Checksums(min(markers.values()))
        else:
            text = TokenizerFile(text_tokenizer, marker_ids, "base.text_tokenizer")
        layout = in_rows(self.spec.grid, marker_ids, self.offset, self.device)
        self._speak(PromptTemplate(text, system), layout)

    def _settings(self) -> dict[str, Any]:
        return {"template": self.template.unconditional, "grid": self.spec.grid}
