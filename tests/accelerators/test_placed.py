"""Full steps that a file names: which are taken, and whom they are for."""

import json
from typing import Any

import pytest
from placed_parts import write_placed
from tiny_parts import naming

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.placed import Placed, ranges, read_placement, write_placement
from migm.accelerators.predictors.reuse import Reuse
from migm.accelerators.predictors.shortcut import Shortcut
from migm.bases.weights import version
from migm.runtime.errors import UserError
from migm.runtime.identity import identity
from migm.sampling.sampler import Sampler
from migm.sampling.select import Confidence

PLANS = [
    {"num_full_steps": 2, "first": 1, "steps": [0, 4]},
    {"num_full_steps": 3, "first": 1, "steps": [0, 3, 5]},
    {"num_full_steps": 3, "first": 2, "steps": [0, 1, 4]},
]


@pytest.fixture
def about(tiny_base, make_sampling) -> dict[str, Any]:
    """The facts in a file about the tiny base and reuse."""
    known = {"identity": identity(Reuse()), "fingerprint": ""}
    sampling = make_sampling().identity
    return {"base": ["other", tiny_base.fingerprint()], "sampling": sampling, "predictor": known, "plans": PLANS}


@pytest.fixture
def file(tmp_path, about):
    return write_placed(tmp_path, "reuse", 6, [], **about)


def test_the_steps_of_n_b_and_first_are_taken_and_are_the_identity(file):
    policy = Placed(3, 6, written=file)
    assert policy.plan(6) == [True, False, False, True, False, True]
    assert identity(policy) == "Placed(steps=[0, 3, 5])"
    assert Placed(3, 6, first=2, written=file).steps == (0, 1, 4)
    assert Placed(2, 6, written=file, accelerator="x").steps == (0, 4)


def test_what_was_written_here_goes_before_what_is_bundled(file, tmp_path):
    assert Placed(2, 6, written=tmp_path / "none.json", bundled=file).steps == (0, 4)
    own = write_placed(tmp_path / "own", "reuse", 6, [2])
    assert Placed(2, 6, written=own, bundled=file).steps == (0, 3)


def test_it_runs_the_base_at_these_steps(run, file):
    _, records = run(Accelerator(Placed(3, 6, written=file), Reuse(), "reuse_placed"))
    assert [record.index for record in records if record.is_full] == [0, 3, 5]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_steps": 7}, ["num_steps=6", "this is 7", "python -m migm.place", "sampling.num_steps=7"]),
        ({"num_full_steps": 4}, ["num_full_steps=4", "first=1", "B = 2 to 3", "accelerator=some_placed"]),
        ({"first": 3}, ["policy.first=3", "first = 1, 2", "python -m migm.place"]),
        ({"written": None}, ["accelerator.policy.written", "none", "python -m migm.place accelerator=some_placed"]),
        ({"written": "no.json"}, ["no.json", "python -m migm.place accelerator=some_placed sampling.num_steps=6"]),
    ],
)
def test_what_the_file_lacks_is_refused_with_the_command_that_makes_it(file, options, words):
    settings = {"num_full_steps": 3, "num_steps": 6, "written": file, "accelerator": "some_placed", **options}
    with pytest.raises(UserError, match=naming(*words)):
        Placed(**settings)


def test_another_number_of_steps_is_refused(file):
    with pytest.raises(UserError, match=r"policy\.num_steps=6, but sampling\.num_steps=5"):
        Placed(3, 6, written=file).plan(5)


def test_a_sampler_of_another_base_predictor_or_sampling_is_refused(
    file, tiny_base, make_base, make_sampling, make_shortcut
):
    def sampler(base=tiny_base, predictor=None, sampling=None, **options):
        accelerator = Accelerator(Placed(3, 6, written=file, **options), predictor or Reuse(), "reuse_placed")
        return Sampler(base, sampling or make_sampling(), accelerator)

    assert sampler().label == "reuse_placed 6,3"
    other = make_sampling(select=Confidence(9.0))
    assert sampler(sampling=make_sampling(num_full_steps=4)).num_full_steps == 3
    cases = [
        ({"base": make_base(seed=9)}, ["for base other or"]),
        ({"predictor": Reuse("residual")}, ["for predictor Reuse()", "Reuse(of=residual)"]),
        ({"predictor": Shortcut(module=make_shortcut())}, ["for predictor Reuse()", "Shortcut("]),
        ({"sampling": other}, ["for sampling Sampling(", "temperature=9"]),
    ]
    for options, words in cases:
        with pytest.raises(UserError, match=naming(*words, "make one for it by python -m migm.place")):
            sampler(**options)
    free = Accelerator(Placed(3, 6, written=file, sampling="any"), Reuse(), "reuse_placed")
    assert Sampler(tiny_base, other, free).num_full_steps == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("[0, 3, 5]", "[0, 2, 5]"), "is damaged"),
        (lambda text: text[:-20], "is not a file of migm.place"),
        (lambda text: text.replace("migm-placement/1", "migm-placement/9"), "is not a file of migm.place"),
        (lambda text: "[]", "is not a file of migm.place"),
    ],
)
def test_a_file_that_was_changed_is_refused(file, change, words):
    file.write_text(change(file.read_text()))
    with pytest.raises(UserError, match=words):
        Placed(3, 6, written=file)


def test_what_is_written_is_read_again_and_the_same_each_time(tmp_path, about):
    content = {**about, "num_steps": 6, "errors": {"kl": {"0 3": [0.5, 0.25], "0": []}}, "empty": []}
    for name in ("a", "b"):
        write_placement(tmp_path / name, content)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    known = read_placement(tmp_path / "a", version(tmp_path / "a"))
    assert {key: value for key, value in known.items() if key != "format"} == content
    assert json.loads((tmp_path / "a").read_text())["plans"] == PLANS
    assert sum('"steps"' in line for line in (tmp_path / "a").read_text().splitlines()) == 3  # a line for each plan


def test_numbers_are_told_as_ranges():
    assert ranges([1, 2, 3, 5, 8, 9]) == "1 to 3, 5, 8 to 9"
    assert ranges([4]) == "4"
