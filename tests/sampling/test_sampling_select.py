"""Selection of the tokens that a step keeps."""

from typing import get_args

import pytest
import torch

from migm.runtime.errors import UserError
from migm.sampling.loop import mask_ratio
from migm.sampling.noise import SELECT, KeyedNoise
from migm.sampling.select import Anneal, Confidence, Random, annealed, revealed, split


def kept(scores, positions, count, rule="count"):
    """What a step reveals of the scored positions: indices, positions, and the positions left."""
    chosen = revealed(scores, count, rule)
    return split(chosen, positions, int(chosen[0].sum()))


@pytest.fixture
def scored():
    """Log-probabilities (3, 10), their noise, and positions."""
    log_prob = -torch.rand(3, 10, generator=torch.Generator().manual_seed(0)) * 5
    positions = torch.tensor([[0, 2, 3, 5, 6, 8, 9, 11, 14, 15]]).expand(3, -1)
    return log_prob, KeyedNoise(0, torch.arange(3)), positions


@pytest.mark.parametrize(("step", "left"), [(0, 1.0), (2, 0.6), (4, 0.2), (5, 0.0)])
def test_the_temperature_falls_linearly_to_zero_at_the_last_step(scored, step, left):
    log_prob, noise, positions = scored
    scores = Confidence(7.0)(log_prob, noise, step, 6, positions)
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores, log_prob.double() + 7 * left * noise.gumbel(SELECT, step, positions))


def test_the_last_step_keeps_the_most_probable_tokens(scored):
    log_prob, noise, positions = scored
    chosen, _, _ = kept(Confidence(7.0)(log_prob, noise, 5, 6, positions), positions, 4)
    assert torch.equal(chosen, log_prob.topk(4, dim=1).indices.sort(1).values)
    early, _, _ = kept(Confidence(7.0)(log_prob, noise, 0, 6, positions), positions, 4)
    assert not torch.equal(early, chosen)


def test_a_constant_temperature_stays(scored):
    log_prob, noise, positions = scored
    scores = Confidence(2.0, "constant")(log_prob, noise, 5, 6, positions)
    torch.testing.assert_close(scores, log_prob.double() + 2 * noise.gumbel(SELECT, 5, positions))


@pytest.mark.parametrize(("step", "temperature"), [(0, 3.0), (1, 2.0), (2, 1.0)])
def test_the_temperature_can_end_above_zero(scored, step, temperature):
    log_prob, noise, positions = scored
    scores = Confidence(3.0, last=1.0)(log_prob, noise, step, 3, positions)
    torch.testing.assert_close(scores, log_prob.double() + temperature * noise.gumbel(SELECT, step, positions))
    with pytest.raises(UserError, match=r"sampling\.select\.last=1\.0 needs anneal=linear, not anneal=constant"):
        Confidence(3.0, "constant", last=1.0)


@pytest.mark.parametrize(
    ("anneal", "wanted"),
    [
        ("linear", [1, 2 / 3, 1 / 3, 0]),
        ("remaining", [3 / 4, 2 / 4, 1 / 4, 0]),
        ("compounding", [3 / 4, 3 / 4 * 2 / 4, 3 / 4 * 2 / 4 * 1 / 4, 0]),
        ("constant", [1, 1, 1, 1]),
    ],
)
def test_temperatures_fall_by_their_rule_for_rows_at_one_step_or_at_several(anneal, wanted):
    alone = [annealed(2.0, anneal, k, 4) for k in range(4)]
    assert alone == pytest.approx([2 * share for share in wanted])
    steps = torch.tensor([[2], [0], [3]])
    rows = torch.as_tensor(annealed(2.0, anneal, steps, 4)).expand(3, 1)
    torch.testing.assert_close(rows.double(), torch.tensor([[alone[k]] for k in (2, 0, 3)]).double())


@pytest.mark.parametrize("anneal", get_args(Anneal))
def test_a_single_step_has_scores(scored, anneal):
    log_prob, noise, positions = scored
    assert Confidence(7.0, anneal)(log_prob, noise, 0, 1, positions).isfinite().all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_scores_are_computed_in_their_dtype(scored, dtype):
    log_prob, noise, positions = scored
    precision = getattr(torch, dtype)
    scores = Confidence(2.0, "constant", dtype)(log_prob, noise, 1, 6, positions)
    assert scores.dtype == precision
    gumbel = noise.gumbel(SELECT, 1, positions, dtype=precision)
    assert torch.equal(scores, log_prob.to(precision) + 2.0 * gumbel)


def test_selection_counts_unless_it_is_told_otherwise():
    assert (Confidence(1.0).rule, Confidence(1.0, rule="cutoff").rule, Random().rule) == ("count", "cutoff", "count")


def test_random_selection_ignores_the_model(scored):
    log_prob, noise, positions = scored
    one = Random()(log_prob, noise, 2, 6, positions)
    assert torch.equal(one, Random()(-log_prob, noise, 2, 6, positions))
    assert not torch.equal(one, Random()(log_prob, noise, 3, 6, positions))


@pytest.mark.parametrize("count", [0, 1, 4, 10])
def test_split_is_a_sorted_partition_by_score(scored, count):
    scores, _, positions = scored
    chosen, taken, left = kept(scores, positions, count)
    assert chosen.shape == taken.shape == (3, count)
    assert left.shape == (3, 10 - count)
    assert torch.equal(taken, positions.gather(1, chosen))
    for part in (taken, left):
        assert (part.diff(dim=1) > 0).all()
    assert torch.equal(torch.cat([taken, left], 1).sort(1).values, positions)
    if 0 < count < 10:
        rest = torch.ones_like(scores, dtype=torch.bool).scatter(1, chosen, False)
        best_left = scores.masked_fill(~rest, float("-inf")).amax(1)
        assert (scores.gather(1, chosen).amin(1) > best_left).all()


@pytest.mark.parametrize("count", range(11))
@pytest.mark.parametrize("levels", [1, 3, 6, 1000])
def test_a_cutoff_keeps_masked_what_lies_strictly_below_the_first_score_to_reveal(count, levels):
    generator = torch.Generator().manual_seed(levels)
    scores, positions = torch.randint(levels, (1, 10), generator=generator).bfloat16(), 3 * torch.arange(10)[None]
    ranked = sorted(scores[0].tolist())
    cut = ranked[min(10 - count, 9)]  # the original's index; something is revealed even where nothing was planned
    below = [i for i in range(10) if scores[0, i] < cut]
    chosen, taken, left = kept(scores, positions, count, "cutoff")
    assert left.tolist() == [[3 * i for i in below]]
    assert chosen.tolist() == [[i for i in range(10) if i not in below]]
    assert torch.equal(taken, positions.gather(1, chosen))
    assert chosen.shape[1] >= max(count, 1)


@pytest.mark.parametrize("count", [0, 3, 10])
def test_of_equal_scores_a_count_takes_as_many_as_planned(count):
    chosen, _, left = kept(torch.zeros(2, 10), torch.arange(10).expand(2, -1), count)
    assert (chosen.shape, left.shape) == ((2, count), (2, 10 - count))


def test_a_cutoff_refuses_several_images():
    with pytest.raises(UserError, match=r"sampling\.select\.rule=cutoff.*one image"):
        kept(torch.zeros(2, 10), torch.arange(10).expand(2, -1), 3, "cutoff")


def test_mask_ratio_is_the_share_still_masked():
    assert mask_ratio(torch.zeros(2, 12, dtype=torch.long), 16).tolist() == [0.75, 0.75]
    assert mask_ratio(torch.zeros(2, 12, dtype=torch.long), 16).dtype == torch.float32


@pytest.mark.parametrize("rows", [[0, 3, 6], [6, 1, 0]])
def test_rows_may_have_counts_of_their_own_among_what_is_allowed(scored, rows):
    scores, count = scored[0], torch.tensor(rows)
    allowed = torch.rand(3, 10, generator=torch.Generator().manual_seed(1)) < 0.6
    found = revealed(scores, count, "count", allowed)
    for row, wanted in enumerate(count.tolist()):
        ranked = sorted(allowed[row].nonzero()[:, 0].tolist(), key=lambda i: -float(scores[row, i]))
        assert sorted(ranked[:wanted]) == found[row].nonzero()[:, 0].tolist()
