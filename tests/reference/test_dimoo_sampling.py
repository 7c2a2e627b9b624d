"""Whole runs of the original DiMOO samplers, replayed with their recorded uniforms."""

import json
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Always, Uniform
from migm.sampling.draw import GumbelMax
from migm.sampling.guidance import Constant
from migm.sampling.loop import Sampling
from migm.sampling.noise import SELECT, to_gumbel
from migm.sampling.sampler import Sampler
from migm.sampling.schedule import CosineFloor
from migm.sampling.select import Confidence

CLOSE = {"rtol": 2e-5, "atol": 2e-5}


class Recorded:
    """The uniforms of a recorded run."""

    def __init__(self, tensors):
        self.tensors = tensors

    def gumbel(self, purpose, step, positions, width=None, dtype=torch.float64):
        uniform = self.tensors[f"u_{'conf' if purpose == SELECT else 'sample'}.{step:02d}"]
        assert uniform.shape[:2] == positions.shape
        return to_gumbel(uniform, dtype)


@dataclass(frozen=True)
class Watched(GumbelMax):
    """Also keeps the logits and the confidences it gives."""

    seen: dict[int, Any] = field(default_factory=dict, compare=False)

    def __call__(self, logits, noise, step, positions, num_steps):
        tokens, log_prob = super().__call__(logits, noise, step, positions)
        self.seen[step] = logits, log_prob.exp()
        return tokens, log_prob


def sampling_of(tensors, meta, dtype, rule):
    draw = Watched(1.0, dtype, plain_confidence=True)
    select = Confidence(1.0, "constant", dtype, rule)
    guidance = Constant(float(meta["cfg_scale"]), on="logits")
    return Sampling(int(meta["timesteps"]), int(meta.get("budget", 1)), CosineFloor(), draw, select, guidance)


def ids_of(base, tensors, meta, step):
    """The image tokens (1, l) after a recorded step, v where masked."""
    ids = tensors[f"x.{step:02d}"].gather(1, base.layout.places[None] + int(meta["code_start"]) - 2)
    return torch.where(ids == base.layout.mask, base.spec.vocab_size, ids - base.offset)


def replay(base, tensors, meta, accelerator, dtype="float32", rule="count"):
    """The records of every step, after comparing logits, confidences and tokens with the recorded ones."""
    sampling, records = sampling_of(tensors, meta, dtype, rule), []
    watch = SimpleNamespace(on_step=records.append)
    tokens = Sampler(base, sampling, accelerator).tokens(["any"], Recorded(tensors), [watch])
    assert len(records) == int(meta["steps_run"])
    close = CLOSE if dtype == "float32" else {"rtol": 2**-5, "atol": 2**-3}
    for record in records:
        step = f"{record.index:02d}"
        logits, confidence = sampling.draw.seen[record.index]
        torch.testing.assert_close(logits, tensors[f"logits.{step}"], rtol=close["rtol"], atol=10 * close["atol"])
        torch.testing.assert_close(confidence, tensors[f"conf.{step}"], **close)
        assert torch.equal(record.tokens, ids_of(base, tensors, meta, record.index)), step
    assert torch.equal(tokens + base.offset, tensors["final_vq_ids"])
    return records


@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize(
    ("name", "rule"), [("vanilla", "count"), ("generate_image", "count"), ("lumina_cutoff", "cutoff")]
)
def test_vanilla_runs_are_reproduced_step_by_step(read_vector, recorded_dimoo, name, rule, one_pass):
    tensors, meta = read_vector(f"dimoo_sample_{name}")
    base = recorded_dimoo(f"dimoo_sample_{name}", one_pass=one_pass)
    replay(base, tensors, meta, Accelerator(Always()), rule=rule)


@dataclass(frozen=True)
class FromRecordedLogits(GumbelMax):
    """Draws from the recorded logits instead of the base's own: what is left is the sampler."""

    tensors: dict[str, Any] = field(default_factory=dict, compare=False)

    def __call__(self, logits, noise, step, positions, num_steps):
        return super().__call__(self.tensors[f"logits.{step:02d}"], noise, step, positions)


def test_the_bfloat16_sampler_draws_the_recorded_tokens_from_the_recorded_logits(read_vector, recorded_dimoo):
    """Every device rounds the base's bfloat16 products in its own way, so the run is replayed from its logits."""
    tensors, meta = read_vector("dimoo_sample_vanilla_bf16")
    base = recorded_dimoo("dimoo_sample_vanilla_bf16")
    draw = FromRecordedLogits(1.0, "bfloat16", plain_confidence=True, tensors=tensors)
    sampling, records = replace(sampling_of(tensors, meta, "bfloat16", "count"), draw=draw), []
    Sampler(base, sampling).tokens(["any"], Recorded(tensors), [SimpleNamespace(on_step=records.append)])
    assert len(records) == int(meta["steps_run"])
    for record in records:
        assert torch.equal(record.tokens, ids_of(base, tensors, meta, record.index))


def test_bfloat16_logits_are_as_near_to_the_recorded_ones_as_those_are_to_float32(read_vector, recorded_dimoo):
    tensors, meta = read_vector("dimoo_sample_vanilla_bf16")
    exact = read_vector("dimoo_sample_vanilla")[0]["logits.00"]
    sampling = sampling_of(tensors, meta, "bfloat16", "count")
    base = recorded_dimoo("dimoo_sample_vanilla_bf16", dtype="bfloat16")
    Sampler(base, sampling).tokens(["any"], Recorded(tensors))
    logits, recorded = sampling.draw.seen[0][0], tensors["logits.00"].float()
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - recorded).norm() < 1.5 * (recorded - exact).norm()


def shortcut_of(name, read_vector, tmp_path, **more):
    """The published-style file of a recorded shortcut, through the predictor that loads it."""
    torch.save(read_vector(name)[0], tmp_path / "shortcut.pth")
    return Shortcut(tmp_path / "shortcut.pth", **more)


@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize("name", ["shortcut", "shortcut_noprompt"])
def test_shortcut_runs_are_reproduced_step_by_step(read_vector, recorded_dimoo, tmp_path, name, one_pass):
    tensors, meta = read_vector(f"dimoo_sample_{name}")
    base = recorded_dimoo(f"dimoo_sample_{name}", one_pass=one_pass)
    heads = json.loads(read_vector("dimoo_base_state")[1]["config"])["n_heads"]
    prompt = meta["no_prompt"] == "false"
    predictor = shortcut_of("dimoo_shortcut_A_state", read_vector, tmp_path, num_heads=heads, prompt=prompt)
    records = replay(base, tensors, meta, Accelerator(Uniform(int(meta["budget"])), predictor))
    for record in records:
        halves = record.features if not one_pass else record.features[0].chunk(2)
        for half, value in zip(("cond", "uncond"), halves, strict=True):
            wanted = tensors[f"{'feat' if record.is_full else 'shortcut'}_{half}.{record.index:02d}"]
            torch.testing.assert_close(value[:, : wanted.shape[1]], wanted, **CLOSE)
    full = [int(key.split(".")[1]) for key in tensors if key.startswith("feat_cond.")]
    assert [record.index for record in records if record.is_full] == sorted(full)
