"""Annotated shapes and dtypes are checked in the tests (shape_checks.py), and only there."""

import copy
import pickle

import pytest
import torch
from jaxtyping import TypeCheckError
from lightning.fabric.utilities import move_data_to_device
from tiny_parts import ROOT, moment

from migm.bases.base import Branch, Control, image_rows
from migm.trajectories.dataset import Pairs


def ids(*shape):
    return torch.zeros(shape, dtype=torch.long)


BRANCH = Branch(ids(4, 1), ids(4, 3), copies=2)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((4, 6), torch.float32), ((4, 6, 8), torch.long)], ids=["an axis too few", "no floats"]
)
def test_a_function_refuses_another_shape_and_another_dtype(shape, dtype):
    assert image_rows(torch.zeros(4, 6, 8), BRANCH).shape == (4, 3, 8)
    with pytest.raises(TypeCheckError, match="features"):
        image_rows(torch.zeros(shape, dtype=dtype), BRANCH)


def test_an_axis_has_one_size_in_all_arguments(tiny_base):
    c = tiny_base.spec.channels
    features = torch.zeros(2, 3, c, dtype=torch.float64)
    assert tiny_base.head(features, ids(2, 3)).shape == (2, 3, tiny_base.spec.vocab_size)
    with pytest.raises(TypeCheckError, match="positions"):
        tiny_base.head(features, ids(2, 1))


def test_a_result_is_held_against_the_arguments(tiny_base):
    (branch,) = tiny_base.encode(torch.tensor([1, 2]), guided=True)
    with pytest.raises(TypeCheckError, match="return value"):
        tiny_base.features(ids(2, 16), branch, moment(torch.ones(2)), runner=lambda blocks, x, _: x[:3])


def test_fields_of_dataclasses_and_named_tuples_are_checked():
    with pytest.raises(TypeCheckError, match="rows"):
        Branch(ids(4, 1), ids(3, 3))
    with pytest.raises(TypeCheckError, match="rows"):
        Control(torch.zeros(4, 3, 8), ids(4, 2))


def test_checked_objects_are_copied_pickled_and_moved():
    on_host = {"width": 1, "lengths": [1, 1], "host_steps": [0, 0], "num_steps": 2}
    pairs = Pairs(torch.zeros(2, 5, 8), torch.zeros(2, 5, 8), ids(2, 4), *[ids(2, 4).bool()] * 2, *made(), **on_host)
    control = Control(torch.zeros(4, 3, 8), ids(4, 3))
    moved = [move_data_to_device(whole, "cpu") for whole in (pairs, control)]  # Lightning refuses a frozen dataclass
    for whole, *more in zip((pairs, control, BRANCH), [*moved, BRANCH], strict=True):
        for again in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole)), *more):
            assert type(again) is type(whole)
            assert repr(again) == repr(whole)


def made():
    """Steps, conditions, halves and images of two pairs."""
    return ids(2), ids(2, 1), ids(2), ids(2)


def test_nothing_but_tests_names_the_checker():
    """That a command loads it by no other way is held by test_commands.py."""
    assert not [path for path in (ROOT / "migm").rglob("*.py") if "beartype" in path.read_text(encoding="utf-8")]
