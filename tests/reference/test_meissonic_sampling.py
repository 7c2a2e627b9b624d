"""Whole runs of Meissonic's and Monetico's pipeline, replayed through migm's loop with their recorded draws."""

import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recorded_meissonic import recorded_meissonic, speaking
from scheduler_noise import RecordedScheduler

from migm.sampling.draw import GumbelMax
from migm.sampling.guidance import Constant
from migm.sampling.loop import Sampling
from migm.sampling.sampler import Sampler
from migm.sampling.schedule import CosineFloor
from migm.sampling.select import Confidence


@dataclass(frozen=True)
class Watched(GumbelMax):
    """Also keeps the logits and the positions of every step."""

    seen: dict[int, Any] = field(default_factory=dict, compare=False)

    def __call__(self, logits, noise, step, positions, *more):
        self.seen[step] = logits, positions
        return super().__call__(logits, noise, step, positions, *more)


@dataclass(frozen=True)
class Counts:
    """The counts of a recorded run that began with known tokens."""

    revealed: tuple[int, ...]

    def counts(self, num_tokens, num_steps):
        return list(self.revealed)


def close(ours, recorded, tolerance):
    assert ours.shape == recorded.shape
    assert float((ours - recorded).abs().max()) <= tolerance * float(recorded.abs().max())


@pytest.fixture
def case(read_vector, tmp_path):
    """A recorded run by its name: its base, tensors and metadata, and the ids of its prompts."""

    def make(name, **changes):
        tensors, meta = read_vector(name)
        base = recorded_meissonic(read_vector, tmp_path, meta, negative_prompt="negative", **changes)
        prompts = {str(i): ids for i, ids in enumerate(tensors["in.cond_ids"])}
        base = speaking(base, {**prompts, "negative": tensors["in.uncond_ids"][0]})
        assert (tensors["in.uncond_ids"] == tensors["in.uncond_ids"][:1]).all()
        return base, tensors, meta, list(prompts)

    return make


def replayed(base, tensors, meta, prompts, schedule, initial=None):
    """The records of every step, after comparing logits and tokens with the recorded ones."""
    n, g = int(meta["steps"]), float(meta["guidance_scale"])
    first, last = json.loads(meta["temperature"])
    draw, records = Watched(1.0), []
    select = Confidence(first, "linear", "float32", last=last)
    sampling = Sampling(n, 1, schedule, draw, select, Constant(g - 1, "logits") if g > 1 else None)
    watch = [SimpleNamespace(on_step=records.append)]
    tokens = Sampler(base, sampling).tokens(prompts, RecordedScheduler(tensors), watch, initial)
    assert len(records) == n
    for record in records:
        step = f"step{record.index:02d}"
        assert (base.timestep(record.moment) == tensors[f"{step}.timestep"]).all()
        logits, positions = draw.seen[record.index]
        wanted = tensors[f"{step}.logits"].gather(1, positions[..., None].expand(-1, -1, logits.shape[-1]))
        close(logits, wanted, 1e-4)
        ours = torch.where(record.tokens == base.spec.vocab_size, int(meta["mask_id"]), record.tokens)
        assert torch.equal(ours, tensors[f"{step}.tokens"]), step
    assert torch.equal(tokens, tensors["out.tokens"])
    return records


@pytest.mark.parametrize("name", ["meissonic_sample_guided", "meissonic_sample_unguided", "meissonic_monetico_sample"])
def test_every_step_of_a_run_is_the_recorded_one(case, name):
    base, tensors, meta, prompts = case(name)
    assert torch.equal(base.micro, tensors["in.micro_conds"][0])
    assert base.spec.grid == tuple(json.loads(meta["grid"]))
    height, width = (side // base.transformer.config.cell for side in base.spec.grid)
    where = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), torch.arange(height), torch.arange(width))
    assert torch.equal(where, tensors["in.img_ids"])
    records = replayed(base, tensors, meta, prompts, CosineFloor(at_least_one=True))
    counts = [[record.new_positions.shape[1]] * len(prompts) for record in records]
    assert counts == json.loads(meta["counts"])
    q, halves = tensors["in.cond_ids"].shape[1], ("cond", "uncond")
    for record in records:
        branch = record.branches[0]
        for half, features in zip(halves, record.features[0].chunk(branch.copies), strict=False):
            close(features[:, q:], tensors[f"step{record.index:02d}.inner_{half}"], 2e-5)
            inner, places = (
                features.gather(1, branch.rows[: len(prompts), :, None].expand(-1, -1, features.shape[2])),
                base.places,
            )
            net = base.transformer
            every = net.mlm_layer.inner(net.up(inner).take_along_dim(places[None, :, None, None], 2)[:, :, 0])
            close(every, tensors[f"step{record.index:02d}.feat_{half}"], 2e-5)
            positions = torch.arange(base.spec.num_tokens).expand(len(prompts), -1)
            name = f"logits_{half}" if branch.copies > 1 else "logits"
            close(base.head(inner, positions), tensors[f"step{record.index:02d}.{name}"], 2e-5)


def test_prompts_give_the_recorded_text_rows(case):
    base, tensors, _, prompts = case("meissonic_sample_guided")
    branch = base.encode(prompts, guided=True)[0]
    close(branch.text, torch.cat([tensors["in.cond_text"], tensors["in.uncond_text"]]), 2e-5)
    close(branch.pooled, torch.cat([tensors["in.cond_pooled"], tensors["in.uncond_pooled"]]), 2e-5)
    again = base.branch(branch.condition)
    assert torch.equal(base.text.of(again).text, branch.text)


def test_a_run_from_known_tokens_gives_the_recorded_tokens_where_it_reveals_as_many(case):
    """The pipeline reveals one token a step until the schedule falls below what is masked; migm's loop follows its own
    schedule, so it is told these counts."""
    base, tensors, meta, prompts = case("meissonic_sample_partial")
    counts = json.loads(meta["counts"])
    assert all(len(set(step)) == 1 for step in counts)
    known = torch.where(tensors["in.tokens"] == int(meta["mask_id"]), base.spec.vocab_size, tensors["in.tokens"])
    replayed(base, tensors, meta, prompts, Counts(tuple(step[0] for step in counts)), known)
