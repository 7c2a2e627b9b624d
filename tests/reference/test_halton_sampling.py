"""Whole runs of the original Halton sampler, replayed with their recorded noise."""

import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from halton_cases import RecordedRun, annealed, close, halton_base

from migm.bases.base import image_rows
from migm.sampling.draw import GumbelMax, InverseCDF, likeliest
from migm.sampling.guidance import Constant
from migm.sampling.loop import Sampling
from migm.sampling.order import Halton
from migm.sampling.sampler import Sampler
from migm.sampling.schedule import Totals
from migm.sampling.select import Random


def sampling_of(meta, on="features", dtype="float32", draw=None):
    settings = json.loads(meta["settings"])
    return Sampling(
        num_steps=settings["step"],
        num_full_steps=settings["step"],
        schedule=Totals(),
        draw=draw or annealed(settings, GumbelMax(dtype=dtype)),
        select=Random(),
        guidance=Constant(float(settings["w"]), on) if settings["w"] else None,
        order=Halton(roll=settings["randomize"]),
    )


def check_positions(record, tensors):
    """Positions that a step revealed, and where its codes are the mask's afterwards."""
    step = f"step{record.index:02d}."
    wanted = tensors[step + "reveal"].nonzero()[:, 1].view(len(record.tokens), -1)
    assert torch.equal(record.new_positions, wanted)
    assert torch.equal(record.tokens, tensors[step + "code_after"].flatten(1))


def check_values(record, tensors, base):
    """Features of the image and logits of both halves before guidance."""
    step, n = f"step{record.index:02d}.", base.spec.num_tokens
    close(record.features[0][:, :n], tensors[step + "feat"])
    close(base.head(image_rows(record.features[0], record.branches[0])), tensors[step + "logit_pair"])


@pytest.mark.parametrize(("on", "dtype"), [("features", "float32"), ("logits", "float64")])
@pytest.mark.parametrize("name", ["plain", "roll", "topk", "masktoken"])
def test_a_recorded_run_is_reproduced_step_by_step(read_vector, name, on, dtype):
    tensors, meta = read_vector(f"halton_sampling_{name}")
    base, sampling, records = halton_base(tensors, meta, read_vector), sampling_of(meta, on, dtype), []
    n = base.spec.num_tokens
    assert sampling.schedule.counts(n, sampling.num_steps) == json.loads(meta["counts"])
    assert torch.equal(sampling.draw.inverse_temperatures(sampling.num_steps), tensors["in.temperature"])
    watch = SimpleNamespace(on_step=records.append)
    tokens = Sampler(base, sampling).tokens(tensors["in.labels"], RecordedRun(tensors), [watch])
    for record in records:
        check_positions(record, tensors)
        check_values(record, tensors, base)
        drawn_masks = tensors[f"step{record.index:02d}.mask_after"].flatten(1).bool()
        assert torch.equal(record.tokens == base.spec.vocab_size, drawn_masks)
    assert torch.equal(records[-1].tokens, tensors["out.code_raw"].flatten(1))
    assert int((records[-1].tokens == base.spec.vocab_size).sum()) == int(meta["mask_tokens_left"])
    assert torch.equal(tokens, tensors["out.code"].flatten(1))
    close(base.tokenizer.pixel_values(tokens, base.spec.grid).clamp(-1, 1), tensors["out.image"])


@pytest.mark.parametrize("name", ["plain", "roll", "topk", "masktoken"])
def test_probabilities_are_the_recorded_ones(read_vector, name):
    tensors, meta = read_vector(f"halton_sampling_{name}")
    base, settings = halton_base(tensors, meta, read_vector), json.loads(meta["settings"])
    w, draw = float(settings["w"]), annealed(settings)
    factors = draw.inverse_temperatures(settings["step"])
    for i in range(settings["step"]):
        halves = base.head(tensors[f"step{i:02d}.feat"]).chunk(2 if w else 1)
        logits = (1 + w) * halves[0] - w * halves[-1]
        close(likeliest(logits * factors[i], draw.top_k).softmax(-1), tensors[f"step{i:02d}.prob"])


def test_the_mask_is_drawn_where_the_original_draws_it(read_vector):
    assert int(read_vector("halton_sampling_masktoken")[1]["mask_tokens_left"]) > 0


def test_given_codes_are_overwritten_when_their_turn_comes(read_vector):
    """The original's `init_code` is no in-painting: our loop does the same if all positions count as masked."""
    tensors, meta = read_vector("halton_sampling_init")
    base = halton_base(tensors, meta, read_vector)
    generation = Sampler(base, sampling_of(meta)).start(tensors["in.labels"], RecordedRun(tensors))
    generation.tokens = tensors["in.init_code"].flatten(1)
    for record in generation:
        check_positions(record, tensors)
        check_values(record, tensors, base)
    assert torch.equal(generation.result(), tensors["out.code"].flatten(1))


def test_in_painting_keeps_the_given_codes(read_vector):
    tensors, meta = read_vector("halton_sampling_init")
    base = halton_base(tensors, meta, read_vector)
    initial = tensors["in.init_code"].flatten(1)[:1]
    noise = RecordedRun({name: value[:1] for name, value in tensors.items() if name.startswith("step")})
    tokens = Sampler(base, sampling_of(meta)).tokens(tensors["in.labels"][:1], noise, initial=initial)
    kept = initial < base.spec.vocab_size
    assert kept.any()
    assert torch.equal(tokens[kept], initial[kept])


@dataclass(frozen=True)
class FromRecorded:
    """Draws from the recorded probabilities and noise, as the original divides them: what is left is the sampler."""

    tensors: dict[str, Any] = field(default_factory=dict, compare=False)

    def __call__(self, logits, noise, step, positions, num_steps):
        p, e = (self.tensors[f"step{step:02d}.{name}"] for name in ("prob", "exponential"))
        where = positions[..., None].expand(-1, -1, p.shape[-1])
        p, e = p.gather(1, where), e.gather(1, where)
        tokens = (p / p.sum(-1, keepdim=True) / e).argmax(-1)
        return tokens, p.gather(-1, tokens[..., None])[..., 0].log()


def test_the_run_under_autocast_is_reproduced_from_its_probabilities(read_vector):
    """Every device rounds bfloat16 products in its own way: features and logits are as near as those to float32."""
    tensors, meta = read_vector("halton_sampling_bf16")
    base, records = halton_base(tensors, meta, read_vector), []
    sampling = sampling_of(meta, draw=FromRecorded(tensors))
    with torch.autocast("cpu", torch.bfloat16):
        watch = SimpleNamespace(on_step=records.append)
        tokens = Sampler(base, sampling).tokens(tensors["in.labels"], RecordedRun(tensors), [watch])
    before = torch.full_like(tokens, base.spec.vocab_size)
    for record in records:
        check_positions(record, tensors)
        recorded, n = tensors[f"step{record.index:02d}.feat"], base.spec.num_tokens
        exact = base.features(before, record.branches[0], record.moment)[:, :n]
        assert (record.features[0][:, :n] - recorded).norm() < 1.5 * (recorded - exact).norm()
        before = record.tokens
    assert torch.equal(tokens, tensors["out.code"].flatten(1))


def test_a_draw_that_looks_up_one_uniform_is_as_exact(read_vector):
    """InverseCDF, which migm's samplers use, draws from the recorded probabilities too."""
    tensors, meta = read_vector("halton_sampling_topk")
    settings, p = json.loads(meta["settings"]), tensors["step00.prob"]
    base = halton_base(tensors, meta, read_vector)
    draw = annealed(settings, InverseCDF())
    uniform = torch.rand(p.shape[:2], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = SimpleNamespace(uniform=lambda *_: uniform)
    where = torch.arange(p.shape[1]).expand(len(p), -1)
    tokens, log_prob = draw(base.head(tensors["step00.feat"]), noise, 0, where, settings["step"])
    close(log_prob.exp(), p.gather(-1, tokens[..., None])[..., 0])
    assert (p.cumsum(-1).gather(-1, tokens[..., None])[..., 0] >= uniform - 1e-5).all()
