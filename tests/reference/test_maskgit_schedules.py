"""Every recorded mask schedule and list of full steps."""

import pytest

from migm.accelerators.refresh import Uniform
from migm.sampling.schedule import Increments

MODES = list(Increments.curves)


@pytest.mark.parametrize(("name", "rule"), [("code", "reference"), ("paper", "paper")])
def test_full_steps_equal_every_recorded_table(read_vector, name, rule):
    tables = {k: v for k, v in read_vector("maskgit_schedules")[0].items() if k.startswith(f"refresh.{name}.")}
    assert len(tables) > 3
    for key, steps in tables.items():
        num_steps, num_full_steps = map(int, key.split(".")[2:])
        assert Uniform(num_full_steps, rule).steps(num_steps) == steps.tolist(), key


def test_full_steps_are_rounded_from_the_original_product():
    """N (k / B), not N k / B: 45 (7 / 10) is just below 31.5, which would round to 32."""
    assert Uniform(10, "reference").steps(45) == [0, 4, 9, 14, 18, 22, 27, 31, 36, 40]


@pytest.mark.parametrize("mode", MODES)
def test_increments_equal_every_recorded_table(read_vector, mode):
    tables = {k: v for k, v in read_vector("maskgit_schedules")[0].items() if k.startswith("counts.")}
    ours = [key for key in tables if key.endswith(f".{mode}")]
    assert len(ours) == len(tables) / len(MODES) > 10
    for key in ours:
        _, num_tokens, num_steps, _ = key.split(".")
        assert Increments(mode).counts(int(num_tokens), int(num_steps)) == tables[key].tolist(), key
