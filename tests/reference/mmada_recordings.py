"""MMaDA as it was recorded: its base, its prompts and its random numbers, all sizes from the files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from migm.bases.llada import LLaDAConfig
from migm.bases.magvit import Levels, MagvitV2
from migm.bases.mmada import NAMES, MMaDA
from migm.sampling.noise import SELECT, to_gumbel

Read = Callable[[str], tuple[dict[str, Tensor], dict[str, str]]]


def recorded_magvit(read: Read) -> tuple[MagvitV2, dict[str, Tensor]]:
    """The image tokenizer without weights, and its weights under their published names."""
    encoder, meta = read("mmada_magvit_encoder")
    decoder, _ = read("mmada_magvit_decoder")
    names = {"channels": "ch", "factors": "ch_mult", "blocks": "num_res_blocks"}
    sizes = [json.loads(meta[part]) for part in ("encoder", "decoder")]
    levels = [Levels(**{name: size[key] for name, key in names.items()}) for size in sizes]
    tensors = {key.removeprefix("sd."): value for key, value in {**encoder, **decoder}.items()}
    return MagvitV2(*levels, bits=int(meta["z_channels"])), tensors


def recorded_mmada(read: Read, folder: Path, **changes: Any) -> MMaDA:
    """The recorded weights, loaded as a published checkpoint is."""
    tensors, meta = read("mmada_base_state")
    ids, grid = json.loads(meta["tokens"]), int(meta["grid"])
    vq, of_vq = recorded_magvit(read)
    config = {**json.loads(meta["config"]), "model_type": "mmada", "codebook_size": int(meta["codebook"])}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config, "num_vq_tokens": grid**2}))
    save_file(of_vq, folder / "vq.safetensors")
    free = next(number for number in range(len(ids) + 1) if number not in ids.values())
    words = {"x": free, **{name: ids[key] for key, name in NAMES.items()}}
    Tokenizer(WordLevel(words, unk_token="x")).save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {"dtype": "float32", "device": "cpu", **changes}
    return MMaDA(
        LLaDAConfig.read(folder / "config.json"),
        vq,
        vocab_size=int(meta["codebook"]),
        code_offset=int(meta["text_vocab"]),
        height=grid * vq.stride,
        width=grid * vq.stride,
        markers=ids,
        max_text_len=int(meta["max_text_len"]),
        weights=folder,
        text_tokenizer=folder / "tokenizer.json",
        tokenizer_weights=folder / "vq.safetensors",
        **settings,
    )


class Said:
    """A text tokenizer of recorded ids, which are asked for by their number."""

    vocabulary: frozenset[str] = frozenset()
    unknown_id: int | None = None

    def __init__(self, rows: list[list[int]]):
        self.rows = rows

    def ids(self, text: str) -> list[int]:
        return self.rows[int(text)]

    def unknown(self, text: str) -> list[str]:
        return []


def say(base: MMaDA, ids: Tensor, mask: Tensor) -> list[str]:
    """Let the base take prompts from recorded sequences; return what asks for them."""
    q = base.template.num_rows
    rows = [row[kept.bool()].tolist() for row, kept in zip(ids[:, :q], mask[:, :q], strict=True)]
    base.template.text = Said([row[2:-1] for row in rows])  # without t2i, bos and eos
    return [str(i) for i in range(len(rows))]


def tokens_of(base: MMaDA, ids: Tensor) -> Tensor:
    """The image tokens (b, l) of recorded sequences, v where masked."""
    image = ids[:, base.template.num_rows + base.layout.places]
    return torch.where(image == base.layout.mask, base.spec.vocab_size, image - base.offset)


class Recorded:
    """The random numbers of a run: exponential ones for its first draw, uniform ones for its second."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors

    def uniform(self, purpose, step, positions, width=None):
        if purpose == SELECT:
            return self.tensors[f"u_conf.{step:02d}"].gather(1, positions).double()
        return (-self._exponential(step, positions)).exp()

    def gumbel(self, purpose, step, positions, width=None, dtype=torch.float64):
        if purpose == SELECT:
            return to_gumbel(self.tensors[f"u_conf.{step:02d}"].gather(1, positions), dtype)
        return -self._exponential(step, positions).log().to(dtype)

    def _exponential(self, step, positions):
        return at(self.tensors[f"exp.{step:02d}"].double(), positions)


def at(values: Tensor, positions: Tensor) -> Tensor:
    """The rows (b, k, v) of values (b, l, v) at positions (b, k)."""
    return values.gather(1, positions[..., None].expand(-1, -1, values.shape[2]))


def close(ours: Tensor, right: Tensor) -> None:
    """AssertionError unless they are as near as 2e-5 of the largest value."""
    torch.testing.assert_close(ours, right, rtol=2e-5, atol=2e-5 * float(right.abs().max()))
