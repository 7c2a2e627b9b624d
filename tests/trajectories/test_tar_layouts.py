"""Tars of the released code, there and back: prompts of any length, images of any size, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_parts import MARKERS, naming, text_base, write_tar

from migm.runtime.errors import UserError
from migm.sampling.sampler import Sampler
from migm.trajectories.dimoo_tars import DiMOOTars
from migm.trajectories.record import Trajectories, record, unpacked
from migm.trajectories.store import Store
from migm.trajectories.tars import FIELDS, export_tars, import_tars, read_images

PROMPTS = ["a red truck", "a photo of a small blue bird on a branch", "sky"]
SIZES = {"height": 16, "width": 24}


def prompts(images: torch.Tensor) -> list[str]:
    return [PROMPTS[i % 3] for i in images.tolist()]


@pytest.fixture(scope="module")
def base():
    """Four rows of six tokens."""
    return text_base(dtype="float32", **SIZES)


def header(base: Any, **changes: Any) -> dict[str, Any]:
    return {"base": base.fingerprint(), "copies": 2, "num_steps": 6, **changes}


def stored(base: Any, folder: Path, made: Trajectories) -> Store:
    store = Store(folder, header(base, copies=made.conditions.shape[1]))
    store.append(made)
    return store


@pytest.fixture(scope="module")
def made(base, make_sampling) -> Trajectories:
    """Three images of prompts of different length, numbered from 5 on, as the sampler recorded them."""
    return record(Sampler(base, make_sampling()), torch.arange(5, 8), 0, prompts, 2, torch.bfloat16)


@pytest.fixture(scope="module")
def tars(base, made, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    store = stored(base, tmp_path_factory.mktemp("made") / "store", made)
    assert list(export_tars(store, folder, base, DiMOOTars)) == [1, 1, 1]
    return folder


def test_every_image_is_a_tar_of_sequences_without_padding(base, tars):
    assert sorted(path.name for path in tars.iterdir()) == [f"0_{i:06d}.tar" for i in range(3)]
    none = len(base.unconditional)
    for number, (_, name, (cond, uncond)) in enumerate(read_images(tars), 5):
        prompt = len(base.template(PROMPTS[number % 3]))
        assert name == f"{number:06d}"
        for fields, before in ((cond, prompt), (uncond, none)):
            t = before + base.layout.num_rows
            assert fields["feat.pth"].shape == (6, t, 48)
            ids, order = fields["teacher_vq_ids.pth"], fields["generation_order.pth"]
            assert (ids.shape, order.shape) == ((t,), (t,))
            assert (order[:before] == -1).all()
            assert (order >= 0).sum() == 24
            assert (ids == MARKERS["newline"]).nonzero()[:, 0].tolist() == [before + 8 + 7 * i for i in range(4)]
        assert (uncond["teacher_vq_ids.pth"][:none] == -100).all()


@pytest.mark.parametrize("shard", [1, 2, 3])
def test_an_import_is_what_the_sampler_recorded(base, made, tars, tmp_path, shard):
    store = Store(tmp_path, header(base))
    list(import_tars(tars, store, base, shard, torch.bfloat16, DiMOOTars))
    parts = [Trajectories(**store.open(i)) for i in range(len(store.shards))]
    whole = Trajectories.join(parts)
    for name in ("tokens", "order", "conditions", "images"):
        assert torch.equal(vars(whole)[name], vars(made)[name]), name
    lengths = (made.conditions >= 0).sum(-1) + base.layout.num_rows
    for image in range(3):
        for half in range(2):
            a, b = (x.features[image, half, :, : lengths[image, half]] for x in (whole, made))
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [None, torch.int8])
def test_tars_go_through_every_kind_of_store(base, made, tars, tmp_path, dtype):
    store = Store(tmp_path / "store", header(base))
    list(import_tars(tars, store, base, 3, dtype, DiMOOTars))
    kept = store.open(0)["features"]
    assert kept.numel() == 0 if dtype is None else unpacked(kept).shape == made.features.shape
    assert list(export_tars(store, tmp_path / "again", base, DiMOOTars)) == [1, 1, 1]
    for (_, name, ours), (_, same, theirs) in zip(read_images(tmp_path / "again"), read_images(tars), strict=True):
        assert name == same
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a["feat.pth"].float(), b["feat.pth"].float(), rtol=0.02, atol=0.05)
            assert all(torch.equal(a[field], b[field]) for field in FIELDS[1:])


def test_an_import_goes_on_behind_the_last_shard(base, made, tars, tmp_path):
    next(import_tars(tars, Store(tmp_path, header(base)), base, 1, None, DiMOOTars))
    assert list(import_tars(tars, Store(tmp_path), base, 1, None, DiMOOTars)) == [1, 1]
    assert [int(Store(tmp_path).open(i)["images"]) for i in range(3)] == [5, 6, 7]


def refused(folder: Path, base: Any, tmp_path: Path, *words: str, **changes: Any) -> None:
    with pytest.raises(UserError, match=naming(*words)) as error:
        list(import_tars(folder, Store(tmp_path / "store", header(base, **changes)), base, 1, None, DiMOOTars))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"height": 8}, "ids are no prompt and 2x6 codes of this base"),
        ({"height": 24, "width": 16}, "ids are no prompt and 6x4 codes of this base"),
        ({"height": 24}, "39 ids, this base has 46 behind the prompt"),
        ({"seed": 1}, "features are not those of this base"),
        ({"system": "now draw it"}, "unconditional ids are not"),
    ],
)
def test_tars_of_another_base_are_refused(tars, tmp_path, other, words):
    refused(tars, text_base(dtype="float32", **{**SIZES, **other}), tmp_path, "0_000000.tar, 000005", words)


def test_tars_of_another_number_of_steps_are_refused(base, tars, tmp_path):
    refused(tars, base, tmp_path, "features are (6, ", "sampling.num_steps ask (9, ", num_steps=9)


Change = Callable[[dict[str, dict[str, torch.Tensor]]], Any]


def rewritten(tars: Path, folder: Path, change: Change) -> Path:
    """The first tar with its records changed."""
    folder.mkdir()
    shutil.copy(tars / "0_000000.tar", folder)
    ((_, name, halves),) = read_images(folder)
    records = {f"{name}_{kind}": half for kind, half in zip(("cond", "uncond"), halves, strict=True)}
    change(records)
    write_tar(folder / "0_000000.tar", records.items())
    return folder


def no_newline(records):
    ids = records["000005_cond"]["teacher_vq_ids.pth"]
    ids[ids == MARKERS["newline"]] = MARKERS["newline"] + 1


def a_prompt_for_code(records):
    records["000005_cond"]["teacher_vq_ids.pth"][-5] = 3


def another_image(records):
    records["000005_uncond"]["teacher_vq_ids.pth"][-5] ^= 1


def words_for_name(records):
    for key in list(records):
        records[key.replace("000005", "first")] = records.pop(key)


def fewer_features(records):
    record = records["000005_uncond"]
    record["feat.pth"] = record["feat.pth"][:, 1:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (no_newline, "ids are no prompt"),
        (a_prompt_for_code, "ids are no prompt"),
        (another_image, "the same image"),
        (words_for_name, "name is its number"),
        (fewer_features, "features are (6, "),
    ],
)
def test_changed_records_are_refused(base, tars, tmp_path, change, words):
    refused(rewritten(tars, tmp_path / "tars", change), base, tmp_path, "0_000000.tar", words)


def test_unchanged_records_are_not(base, tars, tmp_path):
    store = Store(tmp_path / "store", header(base))
    assert list(import_tars(rewritten(tars, tmp_path / "tars", len), store, base, 1, None, DiMOOTars)) == [1]


def test_a_base_without_released_code_is_refused(made, base, tars, tmp_path):
    other = SimpleNamespace(fingerprint=base.fingerprint)
    refused(tars, other, tmp_path, "data.tars", "LuminaDiMOO", "SimpleNamespace")
    with pytest.raises(UserError, match=naming("export_to", "data.tars=null", "LuminaDiMOO")):
        list(export_tars(stored(base, tmp_path / "made", made), tmp_path / "x", base, None))
    assert not (tmp_path / "x").exists()


def test_one_guidance_half_is_refused(base, tars, tmp_path):
    refused(tars, base, tmp_path, "import_from", "sampling.guidance", copies=1)


def test_several_processes_are_refused(made, base, tars, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    refused(tars, base, tmp_path, "import_from", "4 processes")
    with pytest.raises(UserError, match=naming("export_to", "4 processes")):
        list(export_tars(stored(base, tmp_path / "made", made), tmp_path / "x", base, DiMOOTars))


def test_an_export_into_a_folder_with_tars_is_refused(made, base, tars, tmp_path):
    with pytest.raises(UserError, match=naming("export_to", "already; choose an empty folder")):
        list(export_tars(stored(base, tmp_path / "made", made), tars, base, DiMOOTars))
