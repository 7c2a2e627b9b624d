"""The fidelity analysis: its tables, figure and records, from sampled and from stored trajectories."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_parts import collected, composed, naming, tiny

import migm.analyse
from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.recap import Target
from migm.accelerators.refresh import Groups
from migm.analyses.fidelity import Fidelity, averaged
from migm.analyses.forcing import MEASURES, Measured
from migm.analyses.recording import Setting
from migm.bases.inputs import Classes
from migm.config.roots import CollectConfig
from migm.runtime.errors import UserError
from migm.runtime.jsonl import read_lines
from migm.sampling.sampler import Sampler

ALONE = ["+experiment=tiny_shortcut", "device=cpu", "~points.shortcut", "analysis=fidelity"]
ALONE += ["analyses.fidelity.num_images=5", "analyses.fidelity.batch_size=2"]


@pytest.fixture
def setting(tiny_base, make_sampling, make_accelerator):
    """A setting that compares the named accelerators."""

    def make(*accelerators: Any, **changes: Any) -> Setting:
        sampling = make_sampling(**changes)
        chosen = [make_accelerator(x) if isinstance(x, str) else x for x in accelerators]
        points = [Sampler(tiny_base, sampling, accelerator) for accelerator in chosen]
        return Setting(Sampler(tiny_base, sampling), Classes(10), points, 0)

    return make


def records(folder: Path) -> list[dict[str, Any]]:
    return read_lines(folder / "fidelity.jsonl")


def test_the_command_writes_figure_tables_and_records(call_main, tmp_path):
    folder = tmp_path / "out"
    code, out, err = call_main(migm.analyse.main, *ALONE, f"paths.output_dir={tmp_path}", f"folder={folder}")
    assert code == 0, err
    assert "fidelity.jsonl" in out
    assert "30/30 steps of images" in out
    with Image.open(folder / "fidelity.png") as image:
        assert len(image.convert("RGB").getcolors(10**6)) > 20
    found = json.loads((folder / "fidelity.json").read_text())
    assert found["trajectories"] == "sampled, seed 0"
    assert [row["since_full"] for row in found["reuse 6,2"]] == [0, 1, 2]
    rows = records(folder)
    assert {row["label"] for row in rows} == {"reuse 6,2"}
    assert [row["step"] for row in rows if "step" in row] == [0, 1, 2, 3, 4, 5]
    assert all(row["base"] and row["num_images"] == 5 for row in rows)
    page = (folder / "fidelity.md").read_text()
    assert "| reuse 6,2 | 0 | 10 | 0.000 ± 0.000 |" in page
    assert "| 3 | full |" in page
    code, _, err = call_main(migm.analyse.main, *ALONE, f"paths.output_dir={tmp_path}", f"folder={folder}")
    assert code == 0, err  # the folder is still known as its own


@pytest.mark.parametrize("storage", [["data/storage=tokens"], ["data.storage.dtype=float32"]])
def test_a_store_gives_the_numbers_of_what_is_sampled(call_main, tmp_path, storage):
    store = ["data.num_images=6", "data.num_val_images=1", "data.shard_images=3"]
    collected(tiny(tmp_path, *store, *storage, command="collect", root=CollectConfig))
    place = [*store, *storage, "analyses.fidelity.store=${data.folder}"]
    outputs = {}
    for name, more in {"sampled": [], "stored": place}.items():
        folder = tmp_path / name
        code, _, err = call_main(migm.analyse.main, *ALONE, *more, f"paths.output_dir={tmp_path}", f"folder={folder}")
        assert code == 0, err
        outputs[name] = records(folder)
    assert len(outputs["sampled"]) == len(outputs["stored"]) == 9
    for sampled, stored in zip(outputs["sampled"], outputs["stored"], strict=True):
        assert stored["trajectories"].startswith("stored in ")
        assert (stored["steps"], stored["rows"]) == (sampled["steps"], sampled["rows"])
        for name in MEASURES:
            assert stored[name] == pytest.approx(sampled[name], rel=1e-3, abs=1e-5)


def test_values_are_means_over_images_of_their_steps():
    values = torch.tensor([[1.0, 3.0, 9.0], [5.0, 9.0, 9.0]], dtype=torch.float64)[..., None].repeat(1, 1, 5)
    chosen = torch.tensor([[True, True, False], [True, False, False]])
    measured = Measured(values, torch.zeros(2, 3), torch.tensor([[4, 2, 1], [4, 2, 1]]))
    row = averaged(measured, chosen)
    assert (row["images"], row["steps"], row["rows"]) == (2, 3, 10)
    assert row["kl"] == pytest.approx(3.5)
    assert row["kl_se"] == pytest.approx(1.5)
    assert averaged(measured, torch.tensor([[True, False, False], [False] * 3]))["kl_se"] is None


def test_steps_before_the_first_are_only_in_the_table_by_step(setting, tmp_path):
    Fidelity(2, 2, 3).run(setting("reuse"), tmp_path / "fidelity.png")
    by_since = {row["since_full"]: row for row in records(tmp_path) if "since_full" in row}
    by_step = {row["step"]: row for row in records(tmp_path) if "step" in row}
    assert len(by_step) == 6
    for since in (1, 2):
        assert by_since[since]["kl"] == pytest.approx(by_step[3 + since]["kl"])


def test_points_with_other_numbers_of_steps_have_trajectories_of_their_own(setting, tmp_path):
    both = [*setting("reuse").samplers, *setting("reuse", num_steps=4).samplers]
    Fidelity(2).run(Setting(setting().vanilla, Classes(10), both, 0), tmp_path / "fidelity.png")
    last = {row["label"]: row["step"] for row in records(tmp_path) if "step" in row}
    assert last == {"reuse 6,2": 5, "reuse 4,2": 3}


def test_recap_ranks_as_the_trajectory_does(setting, tmp_path):
    """Its rows that come next are computed with all tokens seen; reuse computes none."""
    recap = Accelerator(Groups(2), Target(), "recap")
    Fidelity(3).run(setting("reuse", recap), tmp_path / "fidelity.png")
    errors = {row["label"]: row["error"] for row in records(tmp_path) if row.get("since_full") == 1}
    assert 0 < errors["recap 6,2"] < errors["reuse 6,2"]


@pytest.mark.parametrize(
    ("points", "options", "words"),
    [
        ([], {}, ["analysis=fidelity", "points"]),
        (["vanilla"], {}, ["analysis=fidelity", "predictor"]),
        (["reuse"], {"first_step": 6}, ["analyses.fidelity.first_step=6", "0 to 5", "reuse 6,2"]),
        (["reuse"], {"store": "nowhere"}, ["analyses.fidelity.store=nowhere", "manifest.jsonl"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(setting, tmp_path, points, options, words):
    with pytest.raises(UserError, match=naming(*words)):
        Fidelity(**options).run(setting(*points), tmp_path / "fidelity.png")
    assert not list(tmp_path.iterdir())


def test_all_analyses_hold_fidelity():
    assert composed("analyse").analyses.fidelity.store is None
