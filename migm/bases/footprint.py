"""Say what memory a base will take, from its config alone."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from migm.bases.decoding import BYTES, image_bytes, narrow, placed
from migm.bases.linear import quantise
from migm.config.building import class_of
from migm.runtime.device import pick_device, pick_dtype, without_values
from migm.runtime.errors import UserError
from migm.runtime.resources import readable


class Holdings(NamedTuple):
    """The modules and sizes of a base, on the meta device, as a static method `parts` of its class makes them."""

    transformer: nn.Module
    narrowed: Sequence[nn.Module]  # whose linears `linear` replaces
    tokenizer: Any
    grid: tuple[int, int]
    channels: int
    like_base: bool = False  # whether the tokenizer has the transformer's precision by default
    text: nn.Module | None = None  # a text encoder, which runs in float32
    positions_per_row: int = 1  # image positions that share a row of the features


class Footprint(NamedTuple):
    """Bytes that a base holds, and that the features of both halves and decoding take for each image."""

    transformer: int
    tokenizer: int
    features: int  # of the image tokens; a prompt adds its rows
    decoding: int
    precision: str
    text: int = 0

    def refuse_too_large(self, device: torch.device, images: int) -> None:
        """Raise a UserError if a CUDA device has less memory free than batches of so many images take."""
        if device.type != "cuda":
            return
        needed = self.transformer + self.text + self.tokenizer + images * self.features
        needed += min(images * self.decoding, max(BYTES, self.decoding))  # it is done in parts
        free, _ = torch.cuda.mem_get_info(device)
        if needed > free:
            raise UserError(
                f"batches of {images} need about {readable(needed)}, the GPU has {readable(free)} free: less take "
                "base.linear=int8_weights, base.tokenizer_dtype=bfloat16 and a smaller batch_size"
            )

    def __str__(self) -> str:
        text = f", text encoder {readable(self.text)}" if self.text else ""
        held = f"{readable(self.transformer)} ({self.precision}){text} and tokenizer {readable(self.tokenizer)}"
        return (
            f"memory: transformer {held}; features {readable(self.features)} an image; "
            f"decoding {readable(self.decoding)} an image"
        )


def footprint(node: Mapping[str, Any]) -> Footprint | None:
    """Return the memory of a base from its resolved config, without any weights; None if its class has no `parts`."""
    kind = class_of(node)
    if not hasattr(kind, "parts"):
        return None
    device, meta = pick_device(node.get("device", "auto")), torch.device("meta")
    dtype = pick_dtype(node.get("dtype", "auto"), device)
    with without_values():
        net, narrowed, tokenizer, grid, channels, like_base, encoder, shared = kind.parts(node)
        net.to(dtype)
        own = dtype if like_base and dtype != torch.float64 else torch.float32
        tokenizer = placed(tokenizer, node.get("tokenizer_dtype") or own, meta)
        if node.get("tokenizer_dtype") == "auto" and device.type == "cuda":
            narrow(tokenizer)
        linear = node.get("linear", "plain")
        for part in narrowed:
            quantise(part, linear, "base.linear")
    features = 2 * grid[0] * grid[1] // shared * channels * dtype.itemsize
    name = str(dtype).removeprefix("torch.") + ("" if linear == "plain" else f", linear={linear}")
    text = held(encoder) if encoder else 0
    return Footprint(held(net), held(tokenizer), features, image_bytes(tokenizer, grid), name, text)


def held(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
