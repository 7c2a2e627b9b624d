"""The memory of a base, said before it is loaded, is what the built base holds."""

import pytest
import torch
from tiny_parts import composed

from migm.bases.decoding import image_bytes
from migm.bases.footprint import Footprint, footprint, held
from migm.config.building import build, load
from migm.config.roots import PlanConfig
from migm.runtime.errors import UserError


def node_of(*overrides):
    return load(composed("plan", "device=cpu", *overrides), PlanConfig).base


@pytest.mark.parametrize("kind", ["plain", "fp8_rowwise", "int8_weights"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["tiny", "cifar10", "dimoo_tiny"])
def test_it_is_what_the_built_base_holds(name, dtype, kind):
    node = node_of(f"base={name}", f"base.dtype={dtype}", f"base.linear={kind}")
    said, base = footprint(node), build(node)
    assert said is not None
    assert (said.transformer, said.tokenizer) == (held(base.transformer), held(base.tokenizer))
    assert said.features == 2 * base.spec.num_tokens * base.spec.channels * base.dtype.itemsize
    assert said.decoding == image_bytes(base.tokenizer, base.spec.grid)


def test_lumina_dimoo_takes_half_in_8_bits():
    plain, lower = (
        footprint(node_of("base=dimoo", "sampling=dimoo", "base.dtype=bfloat16", f"base.linear={kind}"))
        for kind in ("plain", "int8_weights")
    )
    assert plain is not None
    assert lower is not None
    block = 4 * 4096**2 + 3 * 4096 * 12288
    assert plain.transformer == 2 * (32 * (block + 2 * 4096) + 2 * 134548 * 4096 + 4096)
    scales = 4 * 32 * (5 * 4096 + 2 * 12288)
    assert lower.transformer == plain.transformer - 32 * block + scales
    assert "16.16 GB (bfloat16)" in str(plain)
    assert "9.19 GB (bfloat16, linear=int8_weights)" in str(lower)


def test_a_base_of_another_class_is_not_guessed():
    assert footprint({"_target_": "migm.bases.tokenizer.ConvVQ"}) is None


def test_a_card_with_too_little_memory_is_refused_before_anything_is_loaded(monkeypatch):
    cuda = torch.device("cuda", 0)
    memory = Footprint(transformer=16 * 10**9, tokenizer=10**9, features=10**8, decoding=10**8, precision="bfloat16")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20 * 10**9, 24 * 10**9))
    memory.refuse_too_large(cuda, images=8)
    with pytest.raises(UserError, match=r"batches of 16 need about 20\.20 GB, the GPU has 20\.00 GB .*int8_weights"):
        memory.refuse_too_large(cuda, images=16)
    memory.refuse_too_large(torch.device("cpu"), images=10**6)
