"""The parts of the recorded Halton-MaskGIT cases."""

import json
from typing import Any

from tiny_parts import state_dict
from torch import Tensor

from migm.bases.halton_net import HaltonTransformer
from migm.bases.llamagen import LlamaGenVQ
from migm.bases.weights import assign_strictly
from migm.sampling.draw import Annealed, InverseCDF

CLOSE = 2e-5  # of a tensor's largest value: in one case all are so small that every epsilon shows


def close(ours: Tensor, recorded: Tensor) -> None:
    """Of the same shape, and as near as float32 allows."""
    assert ours.shape == recorded.shape
    assert float((ours - recorded).abs().max()) <= CLOSE * float(recorded.abs().max())


def halton_transformer(tensors: dict[str, Tensor], meta: dict[str, str], **changes: bool) -> HaltonTransformer:
    """The transformer of a recorded case, its sizes taken from the file's metadata."""
    sizes = {"vocab_size": "codebook", "num_classes": "nclass", "channels": "hidden", "depth": "depth"}
    known = {
        name: int(meta[key]) for name, key in {**sizes, "num_heads": "heads", "mlp_channels": "mlp_hidden"}.items()
    }
    net = HaltonTransformer(num_tokens=int(meta["grid"]) ** 2, **known, **changes)
    assign_strictly(net, net.from_published(state_dict(tensors)), "recorded")
    return net.eval().requires_grad_(False)


def llamagen(tensors: dict[str, Tensor], meta: dict[str, str]) -> LlamaGenVQ:
    """The tokenizer of a recorded case."""
    sizes = ("ch", "ch_mult", "num_res_blocks", "z_channels", "n_embed", "embed_dim", "norm_groups")
    net = LlamaGenVQ(**{name: json.loads(meta[name]) for name in sizes})
    assign_strictly(net, net.from_published(state_dict(tensors)), "recorded")
    return net.eval().requires_grad_(False)


def annealed(settings: dict[str, Any], draw: Any = InverseCDF()) -> Annealed:  # noqa: B008
    """The draw of a run's settings; `draw` is the rule at its end."""
    first, last = float(settings["sm_temp_min"]), float(settings["sm_temp_max"])
    power, top_k = float(settings["temp_pow"]), max(settings.get("top_k", 0), 0)
    return Annealed(draw, first, last, power, settings["temp_warmup"], top_k)
