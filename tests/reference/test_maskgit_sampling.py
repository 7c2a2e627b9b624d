"""Whole runs of the original sampler, replayed with their recorded noise."""

import json
from types import SimpleNamespace

import pytest
import torch
from recorded_noise import Recorded
from tiny_parts import recorded_transformer, wrap

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.shortcut import Shortcut, keep_dropout
from migm.accelerators.refresh import Uniform
from migm.bases.base import image_rows
from migm.sampling.draw import GumbelMax
from migm.sampling.guidance import Ramp
from migm.sampling.loop import Sampling
from migm.sampling.sampler import Sampler
from migm.sampling.schedule import Increments
from migm.sampling.select import Confidence


@pytest.fixture(scope="module", params=["vanilla6", "shortcut6b2", "shortcut6b4", "v1_vanilla6", "v1_masktoken6"])
def case(request, read_vector):
    return read_vector(f"maskgit_sampling_{request.param}")


@pytest.fixture(scope="module")
def base(case, read_vector):
    """The base of a recorded run: v1.0 also draws the mask, and one run has a bias that makes it do so."""
    recorded, meta = case
    tensors, sizes = read_vector(meta["base_file"].removesuffix(".safetensors"))
    changes = {name.replace("_override", ""): value for name, value in recorded.items() if name.startswith("sd_")}
    with_mask = int(meta["n_logit"]) > int(sizes["codebook"])
    return wrap(recorded_transformer({**tensors, **changes}, sizes, mask_logit=with_mask), "float32")


@pytest.fixture
def plan(case, recorded_shortcut):
    """The accelerator of a recorded run."""
    meta = case[1]
    full, name = json.loads(meta["refresh"]), meta["shortcut_file"].removesuffix(".safetensors")
    if not name:
        return full, Accelerator(Uniform(len(full), "reference"))
    network = recorded_shortcut(name)
    keep_dropout(network, 0.5)  # as a network in training is given: sampling drops nothing
    predictor = Shortcut(module=network)
    return full, Accelerator(Uniform(len(full), "reference"), predictor)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_recorded_run_is_reproduced_step_by_step(case, plan, base, recorded_vqgan, dtype):
    tensors, meta = case
    full, accelerator = plan
    sampling = Sampling(
        num_steps=int(meta["steps"]),
        num_full_steps=len(full),
        schedule=Increments("arccos"),
        draw=GumbelMax(float(meta["sm_temp"]), dtype),
        select=Confidence(float(meta["r_temp"]), "linear"),
        guidance=Ramp(float(meta["w"])),
    )
    assert sampling.schedule.counts(base.spec.num_tokens, sampling.num_steps) == json.loads(meta["counts"])
    records = []
    watch = SimpleNamespace(on_step=records.append)
    tokens = Sampler(base, sampling, accelerator).tokens(tensors["in.labels"], Recorded(tensors), [watch])
    assert [r.index for r in records if r.is_full] == full
    left = torch.ones_like(tokens, dtype=torch.float32)
    for record in records:
        prefix = f"step{record.index:02d}."
        assert torch.equal(record.tokens, tensors[prefix + "code_after"].flatten(1))
        left.scatter_(1, record.new_positions, 0.0)
        assert torch.equal(left, tensors[prefix + "mask_after"].flatten(1))
        torch.testing.assert_close(record.features[0], tensors[prefix + "feat"], rtol=2e-5, atol=2e-5)
        logits = base.head(image_rows(record.features[0], record.branches[0]))
        torch.testing.assert_close(logits, tensors[prefix + "logit_pair"], rtol=2e-5, atol=2e-4)
    assert torch.equal(tokens, tensors["out.code"].flatten(1))
    images = recorded_vqgan(meta["vq_file"]).pixel_values(tokens, tuple(tensors["out.code"].shape[1:]))
    torch.testing.assert_close(images, tensors["out.image"], rtol=2e-5, atol=2e-5)


def test_the_mask_is_drawn_where_v1_draws_it(read_vector):
    """17 tokens of this run are masks to its end: the clamp of the replay above is not idle."""
    tensors, meta = read_vector("maskgit_sampling_v1_masktoken6")
    last = tensors[f"step{int(meta['steps']) - 1:02d}.code_after"]
    assert int((last == int(meta["n_logit"]) - 1).sum()) > 0


def test_a_replay_depends_on_the_shortcut(read_vector, recorded_base, recorded_shortcut):
    """Another network must not reproduce the run, or the replay above would prove nothing about it."""
    tensors, meta = read_vector("maskgit_sampling_shortcut6b2")
    wrong = recorded_shortcut("maskgit_shortcut_r1_n2")
    draw, select = GumbelMax(float(meta["sm_temp"])), Confidence(float(meta["r_temp"]))
    sampling = Sampling(6, 2, Increments("arccos"), draw, select, Ramp(float(meta["w"])))
    sampler = Sampler(recorded_base, sampling, Accelerator(Uniform(2), Shortcut(module=wrong)))
    tokens = sampler.tokens(tensors["in.labels"], Recorded(tensors))
    assert not torch.equal(tokens, tensors["out.code"].flatten(1))
