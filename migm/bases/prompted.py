"""Share what the text-to-image bases on a LLaDA transformer have in common."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from migm.bases import decoding
from migm.bases.base import BaseSpec, Branch, Control, Inputs, Moment, prompts_of
from migm.bases.footprint import Holdings
from migm.bases.layers import Block, Layered
from migm.bases.layout import Layout, padded_ids
from migm.bases.linear import LinearKind, Shrinking
from migm.bases.llada import PREFIX, Context, LLaDA, LLaDAConfig, init_block
from migm.bases.shards import load_shards
from migm.bases.weights import load_strictly, locate, sample, sampled
from migm.config.building import build
from migm.runtime.device import DeviceName, DTypeName, pick_device, pick_dtype, without_values
from migm.runtime.errors import UserError
from migm.runtime.files import tensors_hash
from migm.runtime.shapes import Positions, Tokens

DRAWN_ON_CPU = 10**8  # parameters below which random weights are those of the CPU; drawing 8 billion takes minutes


class Template(Protocol):
    """A rule that turns a prompt into the ids that stand before the image."""

    unconditional: list[int]  # the ids where there is no prompt

    def __call__(self, prompt: str) -> list[int]: ...

    def left_out(self, prompts: Sequence[str]) -> str:
        """Return a clause about what the prompts say that is ignored, empty if there is nothing."""
        ...


class PromptedLLaDA(Layered, decoding.Tokenized):
    """A frozen LLaDA transformer over prompt and image tokens, with an image tokenizer; kinds of it are bases.

    A kind calls `_speak` with its template and its layout. Image code c has the id `offset` + c in the transformer's
    tables. The guidance halves are two sequences of different length. With `one_pass` they are padded and run together,
    which pays off if one pass is too small to fill the device; otherwise they are two passes. `linear` is the kind of
    the blocks' linears (`migm.bases.linear`), which are replaced one by one while the weights are loaded.
    """

    template: Template
    layout: Layout
    unconditional: Int[Tensor, " q"]

    def __init__(
        self,
        transformer: LLaDAConfig,
        tokenizer: Any,
        vocab_size: int,
        height: int,
        width: int,
        offset: int,
        weights: str | Path | None,
        tokenizer_weights: str | Path | None,
        one_pass: bool,
        dtype: DTypeName,
        tokenizer_dtype: DTypeName | None,
        device: DeviceName,
        linear: LinearKind,
        random_weights: bool,
    ):
        stride = tokenizer.stride
        if height % stride or width % stride:
            raise UserError(f"base.height={height}, base.width={width} must be multiples of {stride}")
        self.stride, grid = stride, (height // stride, width // stride)
        self.spec = BaseSpec(grid[0] * grid[1], grid, vocab_size, transformer.d_model, transformer.n_layers)
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.linear: LinearKind = linear
        self.offset, self.one_pass = offset, one_pass
        self.transformer = self._transformer(transformer, None if random_weights else weights)
        if not random_weights:
            self._load_tokenizer(tokenizer, tokenizer_weights)
        self.tokenizer = decoding.placed(tokenizer, tokenizer_dtype or "float32", self.device)

    @staticmethod
    def parts(node: Mapping[str, Any]) -> Holdings:
        """Build what a base of this config holds, for its memory."""
        config, tokenizer = build(node["transformer"]), build(node["tokenizer"])
        grid = node["height"] // tokenizer.stride, node["width"] // tokenizer.stride
        net = LLaDA(config)
        return Holdings(net, [net.blocks], tokenizer, grid, config.d_model)

    def _speak(self, template: Template, layout: Layout) -> None:
        """Take the words and the places that the constructor of a kind has made."""
        self.template, self.layout = template, layout
        self.unconditional = torch.tensor(template.unconditional, device=self.device)

    def _check_config(self, config: LLaDAConfig, path: Path) -> None:
        """Refuse a checkpoint whose `config.json` says that it is another model."""
        config.check(path)

    def _load_tokenizer(self, tokenizer: nn.Module, weights: str | Path | None) -> None:
        load_strictly(tokenizer, weights, "base.tokenizer_weights", mapped=True)

    def _settings(self) -> dict[str, Any]:
        """Return what features depend on besides weights and precision."""
        raise NotImplementedError

    def _transformer(self, config: LLaDAConfig, weights: str | Path | None) -> LLaDA:
        with without_values():
            net = LLaDA(config).to(self.dtype)
        shrink = Shrinking(net, self.linear, "base.linear", sample)
        if weights is None:
            self._random(net, shrink)
        else:
            self._check_config(config, locate(f"{weights}/config.json", "base.weights"))
            load_shards(net, weights, "base.weights", PREFIX, self.device, self.dtype, shrink)
        self._plain = shrink.originals() if self.linear != "plain" else None
        return net.eval().requires_grad_(False)

    def _random(self, net: LLaDA, shrink: Shrinking) -> None:
        """Draw the weights, the same ones for linears of every kind, and a small network's on every device."""
        small = sum(weight.numel() for weight in net.parameters()) < DRAWN_ON_CPU
        where = torch.device("cpu") if small else self.device
        for layer, block in enumerate(net.blocks if self.linear != "plain" else ()):
            init_block(block.to_empty(device=where), layer)  # type: ignore[arg-type]
            for name in list(block.state_dict()):
                shrink(f"blocks.{layer}.{name}")
        net.to_empty(device=where).init_weights()  # linears that were replaced keep their values
        net.to(self.device)

    def review(self, inputs: Inputs) -> str:
        self._prompts(inputs)
        return self.template.left_out([str(prompt) for prompt in inputs])

    def _prompts(self, inputs: Inputs) -> list[list[int]]:
        return [self.template(prompt) for prompt in prompts_of(inputs)]

    def encode(self, inputs: Inputs, guided: bool) -> list[Branch]:
        prompts = self._prompts(inputs)
        conditional = self._branch(prompts)
        if not guided:
            return [conditional]
        if self.one_pass:
            both = [*prompts, *[self.template.unconditional] * len(prompts)]
            return [dataclasses.replace(self._branch(both), copies=2)]
        none = self._branch([self.template.unconditional] * len(prompts))
        return [conditional, dataclasses.replace(none, num_prompt=0, prompt=None)]

    def _branch(self, prompts: Sequence[Sequence[int]]) -> Branch:
        return self.branch(padded_ids(prompts, self.device), lengths=[len(ids) for ids in prompts])

    def branch(
        self, condition: Int[Tensor, "b q"], length: int | None = None, lengths: Sequence[int] | None = None
    ) -> Branch:
        known = (condition >= 0).sum(1)
        q = condition.shape[1]
        num_rows = length or q + self.layout.num_rows
        mask = torch.arange(num_rows, device=condition.device) < known[:, None] + self.layout.num_rows
        rows, prompt = known[:, None] + self.layout.places, self._prompt(condition)
        ids = self.layout.sequence(condition, known, num_rows)
        if lengths is None:
            lengths = known.tolist()
        # Masks that are True everywhere would only cost time. Halves that read no prompt are told by their length, so
        # that the host need not read the ids.
        full = min(lengths) == q and len(self.unconditional) not in lengths
        padded = min(lengths) + self.layout.num_rows < num_rows
        return Branch(condition, rows, 1, mask if padded else None, q, None if full else prompt, ids)

    def _prompt(self, condition: Int[Tensor, "b q"]) -> Bool[Tensor, "b q"]:
        """Return a mask that is True at the prompt tokens of conditional halves."""
        width = max(condition.shape[1], len(self.unconditional))
        ids, none = (padded_to(row, width) for row in (condition, self.unconditional[None]))
        return (condition >= 0) & (ids != none).any(1, keepdim=True)

    def prepare(
        self, tokens: Tokens, branch: Branch, moment: Moment, rows: Int[Tensor, "cb r"] | None = None
    ) -> tuple[Float[Tensor, "{branch.copies}*b _ c"], Context]:
        """Return the first block's input and the blocks' context, for `rows` alone or for the whole sequence."""
        assert branch.ids is not None  # for the type checker: `branch` sets them
        image = self.layout.image_ids(tokens, self.spec.vocab_size).repeat(branch.copies, 1)
        return self.transformer.prepare(branch.ids.scatter(1, branch.rows, image), branch.mask, rows)

    @property
    def blocks(self) -> Sequence[Block]:
        return self.transformer.blocks  # type: ignore[return-value]

    def finalize(self, x: Float[Tensor, "cb r c"], ctx: Context) -> Float[Tensor, "cb r c"]:
        """Turn the last block's output into features."""
        return self.transformer.finalize(x)

    def head(
        self, features: Float[Tensor, "b k c"], positions: Positions | None = None, rows: Positions | None = None
    ) -> Float[Tensor, "b k v"]:
        return linear(features, self.transformer.ff_out.weight[self.offset : self.offset + self.spec.vocab_size])

    def control(
        self, tokens: Int[Tensor, "b k"], positions: Positions, branch: Branch, mask: Bool[Tensor, "b k"] | None = None
    ) -> Control:
        copies, embed = branch.copies, self.transformer.wte
        embeddings = embed(tokens.clamp(max=self.spec.vocab_size - 1) + self.offset).repeat(copies, 1, 1)
        rows = branch.rows.gather(1, positions.repeat(copies, 1))
        new = None if mask is None else mask.repeat(copies, 1)
        q = branch.num_prompt
        if not q:
            return Control(embeddings, rows, new, row_mask=branch.mask)
        prompt = branch.condition[:, :q]
        embeddings = torch.cat([embed(prompt.clamp(min=0)), embeddings], 1)
        before = torch.arange(q, device=rows.device).expand(len(prompt), -1)
        keys = None
        if new is not None or branch.prompt is not None:
            read = torch.ones_like(before, dtype=torch.bool) if branch.prompt is None else branch.prompt
            keys = torch.cat([read, torch.ones_like(rows, dtype=torch.bool) if new is None else new], 1)
        return Control(embeddings, torch.cat([before, rows], 1), keys, q, branch.mask)

    @functools.cache  # noqa: B019  a base lives as long as its command
    def plain_fingerprint(self) -> str:
        """Return the fingerprint of the same base with plain linears."""
        return tensors_hash(self._plain or sampled(self.transformer), str(self.dtype), str(self._settings()))


def padded_to(ids: Int[Tensor, "b _"], width: int) -> Int[Tensor, "b {width}"]:
    """Pad the ids with -1 to `width` columns."""
    return nn.functional.pad(ids, (0, width - ids.shape[1]), value=-1)
