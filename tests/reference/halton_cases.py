"""The parts of the recorded Halton-MaskGIT cases."""

import json
from typing import Any

import torch
from recorded_noise import Recorded
from tiny_parts import state_dict
from torch import Tensor

from migm.bases.halton import HaltonMaskGIT
from migm.bases.halton_net import HaltonTransformer
from migm.bases.llamagen import LlamaGenVQ
from migm.bases.weights import assign_strictly
from migm.sampling.draw import Annealed, InverseCDF
from migm.sampling.noise import ORDER, SELECT

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


def halton_base(recorded: dict[str, Tensor], meta: dict[str, str], read_vector: Any, dtype: str = "float32") -> Any:
    """The base of a recorded run, with the run's own bias of the head if it has one, and its tokenizer."""
    tensors, sizes = read_vector(meta["base_file"].removesuffix(".safetensors"))
    changes = {name.replace("_override", ""): value for name, value in recorded.items() if name.startswith("sd_")}
    tokenizer = llamagen(*read_vector(meta["vq_file"].removesuffix(".safetensors")))
    net = halton_transformer({**tensors, **changes}, sizes)
    return HaltonMaskGIT(net, tokenizer, random_weights=True, dtype=dtype, device="cpu")  # type: ignore[arg-type]


class RecordedRun(Recorded):
    """Noise out of a run's tensors: also the rolls of its order, uniforms where it chose by these, or none."""

    def gumbel(self, purpose: int, step: int, positions: Tensor, *rest: Any, **options: Any) -> Tensor:
        if purpose == SELECT and f"step{step:02d}.gumbel" not in self.tensors:
            return torch.zeros(positions.shape, dtype=torch.float64)
        return super().gumbel(purpose, step, positions, *rest, **options)

    def uniform(self, purpose: int, step: int, positions: Tensor, width: int | None = None) -> Tensor:
        if purpose == ORDER:
            return ((self.tensors["in.roll"] + 0.5) / self.tensors["in.order"].numel())[:, None].double()
        known = self.tensors.get(f"step{step:02d}.uniform")
        return torch.zeros(positions.shape) if known is None else known.gather(1, positions)
