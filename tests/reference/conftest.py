"""The recorded cases of the original implementations, and the parts they were recorded of.

They lie in the folder MIGM_VECTORS, by default beside the checkout; all sizes are read from them.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_parts import recorded_transformer, state_dict, wrap
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from migm.bases.dimoo import LuminaDiMOO
from migm.bases.llada import LLaDAConfig
from migm.bases.maskgit import MaskGIT
from migm.bases.tokenizer import ConvVQ
from migm.bases.vqgan import VQGAN
from migm.bases.weights import assign_strictly
from migm.bases.words import TAGS
from migm.shortcuts.maskgit import MaskGITShortcut

Vector = tuple[dict[str, Tensor], dict[str, str]]


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of the recorded cases of the original implementations."""
    folder = Path(os.environ.get("MIGM_VECTORS") or Path(__file__).parents[3] / "shared" / "vectors")
    if not folder.is_dir():
        pytest.skip(f"recorded vectors are absent from {folder}; set MIGM_VECTORS")
    return folder


@pytest.fixture(scope="session")
def read_vector(vectors: Path) -> Callable[[str], Vector]:
    """Name of a vector file without its ending -> its tensors and its metadata."""

    def read(name: str) -> Vector:
        with safe_open(vectors / f"{name}.safetensors", "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118

    return read


@pytest.fixture(scope="session")
def recorded_base(read_vector: Callable[[str], Vector]) -> MaskGIT:
    """The base of the recorded cases, in float32."""
    return wrap(recorded_transformer(*read_vector("maskgit_base_tiny")), "float32")


@pytest.fixture(scope="session")
def recorded_shortcut(read_vector: Callable[[str], Vector]) -> Callable[[str], MaskGITShortcut]:
    """The shortcut of a recorded case, named as its file."""

    def build(name: str) -> MaskGITShortcut:
        tensors, meta = read_vector(name)
        time = meta.get("embed_t", "True") == "True"
        ratio = int(float(meta["bottleneck_ratio"]))
        channels = tensors["in.prev_feat"].shape[-1]
        shortcut = MaskGITShortcut(channels, ratio, int(meta["n_block"]), int(meta["heads"]), time)
        shortcut.load_state_dict(state_dict(tensors))
        return shortcut.eval().requires_grad_(False)

    return build


@pytest.fixture(scope="session")
def recorded_vqgan(read_vector) -> Callable[[str], VQGAN]:
    """The VQGAN of a recorded case, named as its file."""

    def build(name: str) -> VQGAN:
        tensors, meta = read_vector(name.removesuffix(".safetensors"))
        net = VQGAN(json.loads(meta["ddconfig"]), int(meta["n_embed"]), int(meta["embed_dim"]))
        assign_strictly(net, net.from_published(state_dict(tensors)), name)
        return net.eval().requires_grad_(False)

    return build


@pytest.fixture(scope="session")
def recorded_dimoo(read_vector, tmp_path_factory) -> Callable[..., LuminaDiMOO]:
    """Lumina-DiMOO with the recorded weights, loaded as its checkpoint is, for one recorded run's ids."""

    def build(run: str = "dimoo_sample_vanilla", dtype: str = "float32", **changes: Any) -> LuminaDiMOO:
        tensors, meta = read_vector("dimoo_base_state")
        sample, facts = read_vector(run)
        folder = tmp_path_factory.mktemp("checkpoint")
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(meta["config"])
        ids = json.loads(facts["tokens"])
        names = {"mask": "mask", "newline": "newline", "answer": "boa", "image": "boi"}
        markers = {name: ids[key] for name, key in {**names, "end_image": "eoi", "end_answer": "eoa"}.items()}
        vq = ConvVQ(int(facts["codebook"]), 4, 8, 1)
        save_file(vq.state_dict(), folder / "vq.safetensors")
        Tokenizer(WordLevel({"x": 0, **{tag: i + 1 for i, tag in enumerate(TAGS)}}, unk_token="x")).save(
            str(folder / "tokenizer.json")
        )
        side = round(sample["final_vq_ids"].numel() ** 0.5) * vq.stride
        base = LuminaDiMOO(
            LLaDAConfig.read(folder / "config.json"),
            vq,
            vocab_size=int(facts["codebook"]),
            height=side,
            width=side,
            markers=markers,
            system="",
            weights=folder,
            text_tokenizer=folder / "tokenizer.json",
            tokenizer_weights=folder / "vq.safetensors",
            dtype=dtype,
            device="cpu",
            **changes,
        )
        prompt = sample["x0"][0, : int(facts["code_start"]) - 2].tolist()
        base.template = lambda _: prompt  # the recorded runs begin with ids, not words
        base.template.unconditional = sample["uncon_ids"][0].tolist()
        base.unconditional = sample["uncon_ids"][0]
        return base

    return build
