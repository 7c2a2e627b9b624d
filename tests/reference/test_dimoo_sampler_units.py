"""The recorded single parts of DiMOO's sampler: draw, confidence, both re-masking rules, counts."""

import pytest
import torch

from migm.sampling.draw import GumbelMax
from migm.sampling.noise import SELECT, to_gumbel
from migm.sampling.schedule import CosineFloor
from migm.sampling.select import Confidence, revealed


@pytest.fixture(scope="module")
def units(read_vector):
    return read_vector("dimoo_sampler_units")[0]


def left(scores, stay, rule):
    """True at what stays masked, where `stay` of the scores are to."""
    return ~revealed(scores, scores.shape[1] - stay, rule)


class Units:
    """Their uniforms; the cut-off rule was recorded with its own."""

    def __init__(self, units, conf):
        self.units, self.conf = units, conf

    def gumbel(self, purpose, step, positions, width=None, dtype=torch.float64):
        return to_gumbel(self.units[self.conf if purpose == SELECT else "u_sample"], dtype)


def test_drawn_tokens_and_their_confidences_are_the_recorded_ones(units):
    draw = GumbelMax(1.0, "float32", plain_confidence=True)
    tokens, log_prob = draw(units["logits"], Units(units, "u_conf"), 0, torch.arange(12)[None])
    assert torch.equal(tokens, units["sampled"])
    torch.testing.assert_close(log_prob.exp(), units["conf"], rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("rule", "name", "uniforms"), [("count", "topk", "u_conf"), ("cutoff", "cutoff", "u_conf_cutoff")]
)
def test_what_stays_masked_is_the_recorded_set(units, rule, name, uniforms):
    positions = torch.arange(units["conf"].shape[1])[None]
    select = Confidence(1.0, "constant", "float32", rule)
    scores = select(units["conf"].log(), Units(units, uniforms), 0, 8, positions)
    assert torch.equal(left(scores, 5, rule)[0], units[f"keep5_{name}"][0])


def test_ties_are_broken_by_one_rule_and_revealed_by_the_other(units):
    confidence = units["tied_conf"]
    by_count = left(confidence, 3, "count")
    assert int(by_count.sum()) == int(units["tied_keep3_topk"].sum()) == 3
    assert confidence[by_count].max() <= confidence[units["tied_keep3_topk"]].max()
    by_cutoff = left(confidence, 3, "cutoff")
    assert torch.equal(by_cutoff[0], units["tied_keep3_cutoff"][0])
    assert int(by_cutoff.sum()) < 3


def test_counts_equal_every_recorded_table(units):
    tables = {name: kept for name, kept in units.items() if name.startswith("keep_n.")}
    assert len(tables) > 3
    for name, kept in tables.items():
        num_tokens, num_steps = (int(part[1:]) for part in name.split(".")[1:])
        counts = torch.tensor(CosineFloor().counts(num_tokens, num_steps))
        assert torch.equal(num_tokens - counts.cumsum(0), kept), name
