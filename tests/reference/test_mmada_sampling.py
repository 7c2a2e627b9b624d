"""Whole runs of MMaDA's original sampler, replayed with their recorded random numbers."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmada_recordings import Recorded, at, close, recorded_mmada, say, tokens_of
from tiny_parts import moment

from migm.sampling.draw import ExponentialRace, GumbelMax
from migm.sampling.guidance import Constant
from migm.sampling.loop import Sampling, step
from migm.sampling.noise import Noise
from migm.sampling.sampler import Sampler
from migm.sampling.schedule import CosineFloor
from migm.sampling.select import Confidence, revealed

RUNS = ["guided", "unguided", "guided_batch", "guided_nomask"]


@dataclass(frozen=True)
class Watched:
    """A draw that keeps its logits, log-probabilities and positions."""

    draw: Any
    seen: dict[int, Any] = field(default_factory=dict, compare=False)

    def __call__(self, logits, noise: Noise, step, positions, num_steps):
        tokens, log_prob = self.draw(logits, noise, step, positions, num_steps)
        self.seen[step] = logits, log_prob, positions
        return tokens, log_prob


def sampling_of(meta, draw, dtype="float32", rule="count", on="logits"):
    scale = float(meta["guidance_scale"])
    select = Confidence(float(meta["temperature"]), "compounding", dtype, rule)
    guidance = Constant(scale, on) if scale else None
    return Sampling(int(meta["timesteps"]), 1, CosineFloor(at_least_one=True), draw, select, guidance)


def same_features(base, tensors, record):
    """At every row of the recorded sequences; without `attend_padding` at those that are no padding."""
    halves = [
        half
        for branch, features in zip(record.branches, record.features, strict=True)
        for half in features.chunk(branch.copies)
    ]
    for kind, half in zip(("cond", "uncond"), halves, strict=False):
        right, kept = tensors[f"feat_{kind}.{record.index:02d}"], tensors[f"{kind}_mask"].bool()
        for i, row in enumerate(half):
            wanted = right[i] if base.attend_padding else right[i][kept[i]]
            close(row[: len(wanted)], wanted)


def replayed(base, tensors, meta, sampling):
    """The records of every step, after comparing tokens with the recorded ones."""
    records: list[Any] = []
    prompts = say(base, tensors["cond_ids"], tensors["cond_mask"])
    tokens = Sampler(base, sampling).tokens(prompts, Recorded(tensors), [SimpleNamespace(on_step=records.append)])
    assert len(records) == int(meta["timesteps"])
    for record in records[:-1]:
        assert torch.equal(record.tokens, tokens_of(base, tensors[f"ids.{record.index:02d}"])), record.index
    assert torch.equal(tokens, tensors["final_vq_ids"])
    return records


@pytest.mark.parametrize(("draw", "one_pass"), [(GumbelMax(), True), (ExponentialRace(), False)])
@pytest.mark.parametrize("name", RUNS)
def test_runs_are_reproduced_step_by_step(read_vector, tmp_path, name, draw, one_pass):
    tensors, meta = read_vector(f"mmada_sample_{name}")
    base = recorded_mmada(read_vector, tmp_path, one_pass=one_pass, attend_padding=name.endswith("nomask"))
    rule = "cutoff" if len(tensors["cond_ids"]) == 1 else "count"
    watched = Watched(draw)
    for record in replayed(base, tensors, meta, sampling_of(meta, watched, rule=rule)):
        logits, log_prob, positions = watched.seen[record.index]
        close(logits, at(tensors[f"logits.{record.index:02d}"], positions))
        # A probability is as many times wrong as its logits are wrong by absolute amounts.
        right, most = tensors[f"conf.{record.index:02d}"].gather(1, positions), float(logits.abs().max())
        torch.testing.assert_close(log_prob.exp(), right, rtol=4e-5 * max(most, 1), atol=1e-7)
        same_features(base, tensors, record)


@pytest.mark.parametrize("name", RUNS)
def test_guidance_on_features_and_exact_counts_give_the_same_tokens(read_vector, tmp_path, name):
    tensors, meta = read_vector(f"mmada_sample_{name}")
    base = recorded_mmada(read_vector, tmp_path, attend_padding=name.endswith("nomask"))
    replayed(base, tensors, meta, sampling_of(meta, ExponentialRace(), on="features"))


@dataclass(frozen=True)
class FromRecordedLogits(ExponentialRace):
    """Draws from the recorded logits instead of the base's own: what is left is the sampler."""

    tensors: dict[str, Any] = field(default_factory=dict, compare=False)

    def __call__(self, logits, noise: Noise, step, positions, num_steps):
        return super().__call__(at(self.tensors[f"logits.{step:02d}"], positions), noise, step, positions)


def test_the_bfloat16_sampler_draws_the_recorded_tokens_from_the_recorded_logits(read_vector, tmp_path):
    """Every device rounds the base's bfloat16 products in its own way, so the run is replayed from its logits."""
    tensors, meta = read_vector("mmada_sample_guided_bf16")
    draw = Watched(FromRecordedLogits(dtype="bfloat16", tensors=tensors))
    sampling = sampling_of(meta, draw, "bfloat16", "cutoff")
    for record in replayed(recorded_mmada(read_vector, tmp_path), tensors, meta, sampling):
        _, log_prob, positions = draw.seen[record.index]
        recorded = tensors[f"conf.{record.index:02d}"].gather(1, positions)
        assert log_prob.dtype == torch.bfloat16
        torch.testing.assert_close(log_prob, recorded.clamp(min=1e-20).log(), rtol=2**-7, atol=0)


def test_bfloat16_logits_are_as_near_to_the_recorded_ones_as_those_are_to_float32(read_vector, tmp_path):
    tensors, meta = read_vector("mmada_sample_guided_bf16")
    base, draw = recorded_mmada(read_vector, tmp_path, dtype="bfloat16"), Watched(ExponentialRace(dtype="bfloat16"))
    prompts = say(base, tensors["cond_ids"], tensors["cond_mask"])
    exact = read_vector("mmada_sample_guided")[0]["logits.00"]
    Sampler(base, sampling_of(meta, draw, "bfloat16")).tokens(prompts, Recorded(tensors))
    logits, recorded = draw.seen[0][0], tensors["logits.00"].float()
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - recorded).norm() < 1.5 * (recorded - exact).norm()


def test_steps_of_in_painting_are_reproduced_from_the_recorded_tokens_and_counts(read_vector, tmp_path):
    """The original's counts differ from those of the loop there (docs/originals/mmada.md, Schedule)."""
    tensors, meta = read_vector("mmada_sample_inpaint")
    base, draw = recorded_mmada(read_vector, tmp_path), Watched(ExponentialRace())
    sampling = sampling_of(meta, draw)
    branches = base.encode(say(base, tensors["cond_ids"], tensors["cond_mask"]), guided=True)
    tokens, v = tokens_of(base, tensors["cond_ids"]), base.spec.vocab_size
    assert 0 < int((tokens == v).sum()) < tokens.numel()
    for k in range(int(meta["timesteps"])):
        masked = (tokens == v).nonzero()[:, 1][None]
        features = [base.features(tokens, branch, moment(torch.ones(1))) for branch in branches]
        count = max(masked.shape[1] - int(tensors[f"mask_len.{k:02d}"]), 0)
        stepped = step(base, sampling, branches, features, masked, count, Recorded(tensors), k)
        close(draw.seen[k][0], at(tensors[f"logits.{k:02d}"], masked))
        last = tokens.scatter(1, masked, stepped.drawn)
        left = torch.zeros_like(tokens, dtype=torch.bool).scatter(1, masked, ~stepped.revealed)
        if masked.shape[1] > 1:
            assert torch.equal(left, tensors[f"masking.{k:02d}"]), k
            tokens = torch.where(left, v, last)
            assert torch.equal(tokens, tokens_of(base, tensors[f"ids.{k:02d}"])), k
    assert torch.equal(last, tensors["final_vq_ids"])


@pytest.fixture(scope="module")
def units(read_vector):
    return read_vector("mmada_sampler_units")[0]


def test_counts_and_temperatures_equal_every_recorded_table(units):
    tables = [name.removeprefix("mask_len.") for name in units if name.startswith("mask_len.")]
    assert len(tables) > 8
    for name in tables:
        num_tokens, num_steps = (int(part[1:]) for part in name.split("."))
        counts = torch.tensor(CosineFloor(at_least_one=True).counts(num_tokens, num_steps))
        masked = num_tokens - counts.cumsum(0)
        assert torch.equal(masked[:-1], units[f"mask_len.{name}"][:-1]), name
        assert masked[-1] == 0  # the original masks one again, and returns what it drew
        right = units[f"temperature.{name}"]
        ours = torch.stack([scores_of(Confidence(1.0, "compounding"), k, num_steps) for k in range(num_steps)])
        torch.testing.assert_close(ours, right, rtol=1e-12, atol=0)


def scores_of(select, k, num_steps):
    """The temperature of a step: its score where noise is 1 and the logarithm of the probability 0."""
    ones = SimpleNamespace(gumbel=lambda *_, dtype: torch.ones(1, 1, dtype=dtype))
    return select(torch.zeros(1, 1), ones, k, num_steps, torch.zeros(1, 1, dtype=torch.long))[0, 0]


@pytest.mark.parametrize(("name", "temperature"), [("topk", 0.8), ("tied", 0.0)])
def test_what_stays_masked_is_the_recorded_set(units, read_vector, name, temperature):
    assert name == "tied" or float(read_vector("mmada_sampler_units")[1]["temperature"]) == temperature
    probabilities, right = units[f"{name}.probs"], units[f"{name}.masking"]
    uniform = units.get(f"{name}.u", torch.full_like(probabilities, 0.5))
    positions = torch.arange(probabilities.shape[1])[None]
    for i, row in enumerate(probabilities):
        noise, stay = Recorded({"u_conf.00": uniform[[i]]}), int(units[f"{name}.mask_len"][i])
        scores = Confidence(temperature, "constant", "float32")(
            row[None].clamp(min=1e-20).log(), noise, 0, 8, positions
        )
        left = ~revealed(scores, scores.shape[1] - stay, "cutoff")
        assert torch.equal(left[0], right[i])
        by_count = ~revealed(scores, scores.shape[1] - stay, "count")
        assert int(by_count.sum()) == stay
        assert name == "tied" or torch.equal(by_count[0], right[i])
