"""`python -m migm.metric_reference` writes what metrics compare with, and the evaluation reads it."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_parts import naming, study_config
from torchvision.transforms.v2 import functional as F

import migm.metric_reference
from migm.cifar10.photos import Photos
from migm.config.building import build
from migm.config.points import points
from migm.evaluation.results import read
from migm.evaluation.study import study
from migm.metrics.inception import FID
from migm.metrics.metric import Batch
from migm.metrics.networks.inception import load_inception
from migm.metrics.reference import load_reference
from migm.runtime.errors import UserError


@pytest.fixture
def folder(tmp_path) -> Path:
    """Nine photos of two sizes in two folders, and a file that is none."""
    generator = np.random.default_rng(0)
    for i in range(9):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 30 + 10 * (i % 3), 3), dtype=np.uint8)).save(path)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def test_photos_are_resized_at_the_shorter_side_and_cropped_in_the_order_of_paths(folder):
    photos = Photos(folder, size=16)
    assert photos.names == [
        "a/0.png",
        "a/2.png",
        "a/4.png",
        "a/6.png",
        "a/8.png",
        *[f"b/{i}.png" for i in (1, 3, 5, 7)],
    ]
    with Image.open(folder / "a" / "2.png") as image:  # 50x40 -> 20x16 -> the middle 16
        expected = F.pil_to_tensor(image.resize((20, 16), Image.Resampling.BILINEAR))[:, :, 2:18]
    assert torch.equal(photos[1], expected)
    assert [tuple(batch.shape) for batch in photos.batches(4)] == [(4, 3, 16, 16), (4, 3, 16, 16), (1, 3, 16, 16)]


def test_a_zip_is_read_as_the_folder_it_was_made_of(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in folder.rglob("*.png"):
            archive.write(path, path.relative_to(folder).as_posix())
    from_folder, from_zip = Photos(folder, 16), Photos(tmp_path / "photos.zip", 16)
    batches = zip(from_folder.batches(4), from_zip.batches(4, num_workers=1), strict=True)
    assert all(torch.equal(a, b) for a, b in batches)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: Photos(folder / "none"), ["none", "no such folder"]),
        (lambda folder: list(Photos(folder).batches(4)), ["sizes", "size="]),
        (
            lambda folder: (folder / "a" / "0.png").write_bytes(b"x") and Photos(folder)[0],
            ["a/0.png", "cannot be read"],
        ),
        (lambda folder: [p.unlink() for p in folder.rglob("*.png")] and Photos(folder), ["has no file", ".jpg"]),
    ],
    ids=["missing", "sizes", "damaged", "empty"],
)
def test_what_cannot_be_read_is_refused_by_name(folder, make, words):
    with pytest.raises((UserError, FileNotFoundError), match=naming(*words)):
        make(folder)


SMALL = ["inception.random_weights=true", "inception.feature='64'"]


@pytest.fixture
def reference(call_main, tmp_path):
    """`python -m migm.metric_reference` -> exit code, output, errors."""
    fixed = ["metric=[fid_val50k,kid,recall]", "device=cpu", "num_workers=0", f"paths.evaluation={tmp_path}", *SMALL]
    return lambda *more: call_main(migm.metric_reference.main, f"paths.output_dir={tmp_path}", *fixed, *more)


def test_the_command_writes_each_missing_reference_once(folder, tmp_path, reference):
    code, said, _ = reference(f"images={folder}", "size=16", "batch_size=4")
    assert code == 0
    statistics, features = tmp_path / "imagenet512_val50k.npz", tmp_path / "imagenet512_val50k_features.npz"
    torch.manual_seed(0)
    inception = load_inception(random_weights=True, feature="64")
    metric = FID(inception, "val50k")
    for images in Photos(folder, 16).batches(4):
        metric.update(Batch(images, torch.zeros(len(images), dtype=torch.long)))
    found = load_reference(statistics, "reference", ("mu", "sigma"))
    assert (found.n, found.protocol) == (9, "val50k")
    torch.testing.assert_close(found.arrays["sigma"], metric.moments()[1])
    assert load_reference(features, "reference", ("features",)).arrays["features"].shape == (9, 64)
    assert str(statistics) in said.replace("\n", "")
    before = statistics.stat().st_mtime_ns, features.stat().st_mtime_ns
    code, said, _ = reference(f"images={folder}", "size=16")
    assert code == 0
    assert (statistics.stat().st_mtime_ns, features.stat().st_mtime_ns) == before
    assert "nothing to do" in said


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["metric=[fd_cifarnet]"], ["metric=fd_cifarnet", "fid_val50k"]),
        (["metric=[fid_adm]"], ["downloaded, not made"]),
        (["metric=[kid]", "images=null"], ["images=null"]),
    ],
)
def test_the_command_refuses_what_it_cannot_make(reference, more, words):
    code, _, said = reference("images=x", *more)
    assert code == 2
    assert all(word in said for word in words), said


def test_a_study_refuses_few_images_before_it_starts_and_names_them_when_allowed(folder, assets, tmp_path):
    options = ["metric=[fid_clean]", f"paths.evaluation={tmp_path}", "evalset.num_images=10", *SMALL]
    cfg, config = study_config(tmp_path, assets, *options, "+points.reuse=[[6,2]]")
    made = build({**config.metric["fid_clean"], "reference": None})
    for images in Photos(folder, 16).batches(9):
        made.update(Batch(images, torch.zeros(len(images), dtype=torch.long)))
    made.made_reference().save(tmp_path / "clean.npz")
    base = build(config.base)
    with pytest.raises(UserError, match=naming("fid_clean", "10 images", "allow_small_n")):
        study(points(cfg, config), config, base)
    config.metric["fid_clean"] |= {"allow_small_n": True, "reference": None}
    with pytest.raises(UserError, match=naming("reference=null", "fid_clean")):
        study(points(cfg, config), config, base)
    config.metric["fid_clean"]["reference"] = str(tmp_path / "clean.npz")
    done = study(points(cfg, config), config, base)
    done.measure_quality()
    (record,) = read(done.results.path)
    assert record["metric"] == "fid_clean_layer64_random_weights_small_n_10"
    real = load_reference(tmp_path / "clean.npz", "reference", ("mu", "sigma"))
    assert record["reference"] == f"{real.hash}-{made.inception.hash}"
