"""The recorded scheduler of Meissonic and aMUSEd: counts, temperatures, single steps, ties."""

import json
import math

import pytest
import torch
from scheduler_noise import RecordedScheduler

from migm.sampling.draw import GumbelMax
from migm.sampling.schedule import CosineFloor, LinearFloor
from migm.sampling.select import Confidence, revealed

DRAW, SELECT = GumbelMax(1.0), Confidence(2.0, "linear", "float32")


@pytest.fixture(scope="module")
def recorded(read_vector):
    return read_vector("meissonic_scheduler")


def test_counts_equal_every_recorded_table(recorded):
    tables = json.loads(recorded[1]["masked_after"])
    tried = 0
    for name, masked in tables.items():
        num_tokens, num_steps = map(int, name.split("x"))
        if num_steps > num_tokens:  # steps without anything to reveal, which migm refuses
            continue
        counts = torch.tensor(CosineFloor(at_least_one=True).counts(num_tokens, num_steps))
        assert (num_tokens - counts.cumsum(0)).tolist() == masked, name
        tried += 1
    assert tried >= 2


class Ones:
    """Noise of one, which leaves the temperature as the score."""

    def gumbel(self, purpose, step, positions, width=None, dtype=torch.float64):
        return torch.ones(positions.shape, dtype=dtype)


def test_temperatures_equal_every_recorded_table(recorded):
    tables = {name: values for name, values in recorded[0].items() if name.startswith("temperatures.")}
    assert len(tables) >= 2
    for name, values in tables.items():
        num_steps, _, ends = name.removeprefix("temperatures.").partition(".")
        first, _, last = ends.partition("-")
        select = Confidence(float(first), "linear", last=float(last or 0.01))
        zero = torch.zeros(1, 1)
        found = [float(select(zero, Ones(), k, int(num_steps), zero.long())) for k in range(int(num_steps))]
        assert found == pytest.approx(values.tolist(), rel=1e-6, abs=1e-6), name


def keep(name, num_tokens, num_steps, index, meta):
    """Number of a whole image's tokens that stay masked after a step."""
    if name == "started":
        share = float(meta["started"].split()[-1]) * (1 - (index + 1) / num_steps)
        return math.floor(num_tokens * share)
    schedule = {"cosine": CosineFloor(at_least_one=True), "linear": LinearFloor()}[name]
    return num_tokens - sum(schedule.counts(num_tokens, num_steps)[: index + 1])


@pytest.mark.parametrize("name", ["cosine", "linear", "started"])
def test_a_step_on_partly_known_tokens_gives_the_recorded_tokens(recorded, name):
    tensors, meta = recorded
    num_steps, index, mask = int(meta["steps"]), int(meta["step"]), int(meta["mask_id"])
    part = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
    numbers = set()
    for image in range(len(part["before"])):
        one = {key: value[image : image + 1] for key, value in part.items()}
        noise, before = RecordedScheduler(one, prefix=""), one["before"]
        positions = (before == mask).nonzero()[None, :, 1]
        numbers.add(positions.shape[1])
        logits = one["logits"].gather(1, positions[..., None].expand(-1, -1, one["logits"].shape[2]))
        drawn, log_prob = DRAW(logits, noise, index, positions, num_steps)
        assert torch.equal(before.scatter(1, positions, drawn), one["pred"])
        scores = SELECT(log_prob, noise, index, num_steps, positions)
        masked = positions.shape[1]
        left = max(1, min(masked - 1, keep(name, before.shape[1], num_steps, index, meta)))
        shown = revealed(scores, masked - left, "count")
        tokens = before.scatter(1, positions, drawn.where(shown, torch.full_like(drawn, mask)))
        assert torch.equal(tokens, one["tokens"])
    assert len(numbers) > 1


def test_ties_are_broken_as_by_the_rule_cutoff(recorded):
    tensors, meta = recorded
    left = int(meta["tie"].split("mask_len ")[1].split(",")[0])
    scores = tensors["tie.probs"].log()
    assert torch.equal(~revealed(scores, scores.shape[1] - left, "cutoff"), tensors["tie.masking"])
