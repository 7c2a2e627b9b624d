"""Every recorded order, number of tokens and temperature of Halton-MaskGIT."""

import json

import pytest
import torch
from halton_cases import annealed

from migm.sampling.order import halton_order, halton_ranks
from migm.sampling.schedule import Totals


@pytest.fixture(scope="module")
def tables(read_vector):
    """Kind -> the recorded tables of it, by the rest of their names; and what the temperatures were made of."""
    tensors, meta = read_vector("halton_tables")
    kinds: dict[str, dict[tuple[str, ...], torch.Tensor]] = {}
    for name, value in tensors.items():
        kind, *rest = name.split(".")
        kinds.setdefault(kind, {})[tuple(rest)] = value
    return kinds, json.loads(meta["temperature_settings"])


def test_orders_and_their_points_equal_every_recorded_table(tables):
    orders, points = tables[0]["order"], tables[0]["points"]
    assert orders
    for (side,), recorded in orders.items():
        ours = halton_order((int(side), int(side)))
        assert torch.equal(ours, recorded.long()), side
        assert torch.equal(torch.stack([ours // int(side), ours % int(side)], 1), points[side,].long())


def test_rolled_orders_equal_every_recorded_table(tables):
    rolls = tables[0]["roll"]
    assert rolls
    for (side, shift), recorded in rolls.items():
        ranks = halton_ranks((int(side), int(side)), torch.device("cpu"))
        assert torch.equal(((ranks + int(shift)) % len(ranks)).argsort(), recorded.long()), (side, shift)


def test_counts_equal_every_recorded_table(tables):
    counts = tables[0]["counts"]
    assert counts
    for (tokens, steps), recorded in counts.items():
        assert Totals().counts(int(tokens), int(steps)) == recorded.tolist(), (tokens, steps)


def test_totals_of_the_confidence_sampler_equal_every_recorded_table(tables):
    totals = tables[0]["confidence_total"]
    assert {mode for *_, mode in totals} == set(Totals.curves)
    for (tokens, steps, mode), raw in totals.items():
        ours = torch.tensor(Totals(mode, from_zero=True).counts(int(tokens), int(steps)))
        assert torch.equal(ours.cumsum(0), raw.long().maximum(torch.arange(1, int(steps) + 1))), (tokens, steps, mode)


def test_temperatures_equal_every_recorded_table(tables):
    recorded, settings = tables[0]["temperature"], tables[1]
    assert len(recorded) == len(settings)
    for (number,), values in recorded.items():
        known = settings[int(number)]
        draw = annealed(known)
        assert torch.equal(draw.inverse_temperatures(known["step"]), values), known
