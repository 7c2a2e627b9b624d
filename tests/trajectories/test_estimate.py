"""What the ways to keep trajectories are said to take, and which is recommended."""

from pathlib import Path

import pytest
from rich.console import Console
from tiny_parts import collected, contents, tiny

from migm.config.building import build
from migm.config.groups import alternatives
from migm.runtime.errors import UserError
from migm.sampling.sampler import Sampler
from migm.trajectories.dataset import PairDataset
from migm.trajectories.estimate import Costs, TrainingWork, comparison, measure_work, recommended
from migm.trajectories.storage import Features, Tokens

# Lumina-DiMOO at 1024 px, two thousand images, 64 steps; 1.5 s a full step (both halves); 10,000 steps of one pair.
DIMOO = TrainingWork(2000, 64, 2, 4260, 4096, 4096, 100, 8, 10_000, 1.5)
GB, TB = 10**9, 10**12


def costs(work: TrainingWork) -> dict[str, Costs]:
    return {name: storage.costs(work) for name, storage in alternatives("data/storage").items()}


def test_features_of_dimoo_take_what_the_paper_says():
    features = Features().costs(DIMOO)
    assert features.disk == pytest.approx(8.93 * TB, rel=0.005)
    assert features.before == 2000 * 64 * 1.5


@pytest.mark.parametrize(
    ("disk", "memory", "keys"),
    [
        (20 * TB, 64 * GB, "online"),  # 10,000 pairs are 79 images, fewer than the 2000
        (20 * TB, 8 * GB, "features"),
        (8 * TB, 8 * GB, "features_int8"),
        (1 * TB, 8 * GB, "tokens"),
    ],
)
def test_the_quickest_of_what_fits_is_recommended(disk, memory, keys):
    assert recommended(costs(DIMOO), disk, memory) == keys


def test_nothing_is_recommended_where_nothing_fits():
    assert recommended(costs(DIMOO), 10**6, 10**6) is None


def test_a_longer_training_is_better_off_with_what_is_made_once():
    long = DIMOO._replace(pairs=3_000_000)
    assert recommended(costs(long), 20 * TB, 64 * GB) == "features"
    assert recommended(costs(long), 1 * TB, 64 * GB) == "online"


def test_passes_are_counted_as_training_makes_them(tmp_path):
    """A pair costs a pass of one half for either step by tokens; online an image gives all its pairs."""
    config = tiny(tmp_path)
    store = collected(config)
    sampler = Sampler(build(config.base), build(config.sampling))
    work = measure_work(sampler, build(config.data), 120)
    kept = contents(store)
    assert (work.images, work.num_steps, work.copies) == (12, 6, 2)
    assert Features().costs(work).disk == kept["features"].nbytes
    assert Tokens().costs(work).disk == sum(tensor.nbytes for name, tensor in kept.items() if name != "features")
    assert work.seconds > 0
    found = costs(work._replace(seconds=1.0))
    assert found["tokens"].during == 120 * 2 * 0.5
    assert found["online"].during == 120 / (len(PairDataset(store)) / len(store)) * 6


def test_the_comparison_names_every_choice_and_marks_one(tmp_path: Path):
    console = Console(width=160, record=True)
    console.print(comparison(DIMOO, tmp_path / "not" / "there", alternatives("data/storage")))
    text = console.export_text()
    for words in (
        "features",
        "features_int8",
        "tokens",
        "online",
        "8.93 TB",
        "53:20:00",
    ):
        assert words in text
    assert text.count("recommended") == 1


def test_a_training_on_images_of_one_step_is_refused(tmp_path):
    config = tiny(tmp_path, "sampling.num_steps=1", "sampling.num_full_steps=1")
    with pytest.raises(UserError, match=r"sampling\.num_steps=1: a shortcut learns from one step to the next"):
        measure_work(Sampler(build(config.base), build(config.sampling)), build(config.data), 8)
