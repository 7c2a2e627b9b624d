"""The original's own confidence sampler, as far as our parts express it.

It draws decoded tokens anew at every step, which our loop does not: revealed tokens never change. What it takes from
all else is replayed at every step, from the recorded codes before it: features and logits, guidance, draws at all
positions, totals, and the scores that choose which masked positions are revealed. That a decoded position is always
among the chosen ones, and takes the new draw, is written in this test alone.
"""

import json

import pytest
import torch
from halton_cases import RecordedRun, annealed, close, halton_base

from migm.bases.base import Moment, image_rows
from migm.sampling.draw import GumbelMax
from migm.sampling.guidance import Ramp
from migm.sampling.loop import guided_logits
from migm.sampling.schedule import Totals
from migm.sampling.select import Confidence, Random, revealed

RUNS = ["confidence", *(f"confidence_{mode}" for mode in ("masktoken", "now", "warmup", "random", "none"))]


def select_of(settings, step):
    """The scores of a mode at a step."""
    mode = settings["randomize"]
    if mode == "random" or (mode == "warm_up" and step < 2):
        return Random()
    return Confidence(settings["r_temp"] if mode == "linear" else 0.0)


@pytest.mark.parametrize("name", RUNS)
def test_every_step_follows_from_the_codes_before_it(read_vector, name):
    tensors, meta = read_vector(f"halton_sampling_{name}")
    base, settings, noise = halton_base(tensors, meta, read_vector), json.loads(meta["settings"]), RecordedRun(tensors)
    n, mask, num_steps = base.spec.num_tokens, base.spec.vocab_size, settings["step"]
    totals = torch.tensor(Totals(settings["sched_mode"], from_zero=True).counts(n, num_steps)).cumsum(0)
    assert totals.tolist() == json.loads(meta["totals"])
    guidance = Ramp(float(settings["w"])) if settings["w"] else None
    known = {"sm_temp_min": settings["sm_temp"], "sm_temp_max": settings["sm_temp"], "temp_pow": 1, "temp_warmup": 0}
    draw = annealed(known, GumbelMax())
    branches = base.encode(tensors["in.labels"], guided=guidance is not None)
    tokens = torch.full((len(tensors["in.labels"]), n), mask)
    everywhere = torch.arange(n).expand_as(tokens)
    for i in range(num_steps):
        step = f"step{i:02d}."
        features = base.features(tokens, branches[0], Moment.first(len(tokens), num_steps, base.device))
        close(features[:, :n], tensors[step + "feat"])
        close(base.head(image_rows(features, branches[0])), tensors[step + "logit_pair"])
        logits = guided_logits(base, branches, [features], everywhere, guidance, i, num_steps)
        close((settings["sm_temp"] * logits).softmax(-1), tensors[step + "prob"])
        drawn, log_prob = draw(logits, noise, i, everywhere, num_steps)
        assert torch.equal(drawn, tensors[step + "pred"])
        scores = select_of(settings, i)(log_prob, noise, i, num_steps, everywhere)
        decoded = tokens < mask
        left = (totals[i] - decoded.sum(1)).clamp(min=0)
        chosen = decoded | revealed(scores, left, "count", ~decoded)
        tokens = drawn.where(chosen, tokens)
        assert torch.equal(tokens, tensors[step + "code_after"].flatten(1))
        assert torch.equal(tokens == mask, tensors[step + "mask_after"].flatten(1).bool())
    assert torch.equal(tokens.clamp(max=mask - 1), tensors["out.code"].flatten(1))
    if "out.image" in tensors:
        pixels = base.tokenizer.pixel_values(tokens.clamp(max=mask - 1), base.spec.grid)
        close(pixels.clamp(-1, 1), tensors["out.image"])
