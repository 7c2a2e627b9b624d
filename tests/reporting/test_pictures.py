"""Images for the page: cut from previews pixel by pixel, or read from folders of `generate`."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_parts import naming

from migm.reporting.pictures import Pictures
from migm.runtime.errors import UserError
from migm.runtime.pictures import grid_pixels, save_grid


def pixels(address: str) -> np.ndarray:
    """What a data address shows (h, w, 3)."""
    return np.array(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGB"))


@pytest.mark.parametrize(("count", "columns", "scale"), [(5, 3, 2), (1, 3, 2), (4, 2, 1)])
def test_a_preview_is_cut_into_exactly_its_images(tmp_path, count, columns, scale):
    images = torch.randint(0, 256, (count, 3, 6, 8), dtype=torch.uint8)
    save_grid(images, tmp_path / "a.png", columns, scale, [f"prompt {n}" for n in range(count)])
    pictures = Pictures()
    pictures.add_preview("vanilla 4", tmp_path / "a.png")
    assert pictures.keys(["vanilla 4"]) == [(n, 0) for n in range(count)]
    for n, image in enumerate(images):
        wanted = image.permute(1, 2, 0).numpy()  # as large as it was drawn
        assert (pixels(pictures.images["vanilla 4"][n, 0]) == wanted).all()
        assert pictures.captions[n, 0] == f"image {n}: prompt {n}"


def test_a_picture_of_unknown_layout_is_shown_whole(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    pictures = Pictures()
    pictures.add_preview("vanilla 4", tmp_path / "a.png")
    assert pixels(pictures.images["vanilla 4"][0, 0]).shape == (20, 30, 3)


def gallery(folder: Path, accelerator: str, size: int = 8, **changes: object) -> Path:
    """Two prompts by two seeds, as `generate` writes them."""
    folder.mkdir()
    for index in range(2):
        for seed in (0, 5):
            entry = {"prompt": f"prompt {index}", "index": index, "seed": seed, "base": "b", "accelerator": accelerator}
            path = folder / f"{index:05d}_{seed}.json"
            path.write_text(json.dumps({**entry, "num_steps": 16, "num_full_steps": 4, **changes}))
            Image.new("RGB", (size, size), (index, seed, 0)).save(path.with_suffix(".png"))
    return folder


def test_folders_of_generate_are_methods_with_prompts_and_seeds(tmp_path):
    pictures = Pictures()
    pictures.add_gallery(gallery(tmp_path / "a", "reuse"), "b")
    pictures.add_gallery(gallery(tmp_path / "b", "shortcut"), "b")
    assert list(pictures.images) == ["reuse 16,4", "shortcut 16,4"]
    assert pictures.keys(["reuse 16,4"]) == [(0, 0), (0, 5), (1, 0), (1, 5)]
    assert pictures.captions[1, 5] == "prompt 1, seed 5"
    assert (pixels(pictures.images["reuse 16,4"][1, 5]) == (1, 5, 0)).all()


def test_large_images_become_smaller(tmp_path):
    pictures = Pictures()
    pictures.add_gallery(gallery(tmp_path / "a", "reuse", size=600), "b")
    address = pictures.images["reuse 16,4"][0, 0]
    assert address.startswith("data:image/jpeg")
    assert pixels(address).shape == (512, 512, 3)


def test_images_of_another_base_or_without_description_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=naming("images=", "00000_0.json", "base c", "of b")):
        Pictures().add_gallery(gallery(tmp_path / "a", "reuse", base="c"), "b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=naming("images=", "empty")):
        Pictures().add_gallery(tmp_path / "empty", "b")
    lacking = gallery(tmp_path / "c", "reuse")
    (lacking / "00001_5.png").unlink()
    with pytest.raises(UserError, match=naming("00001_5.json")):
        Pictures().add_gallery(lacking, "b")


@pytest.mark.parametrize(("count", "columns"), [(1, 4), (3, 4), (4, 4), (7, 3)])
def test_a_grid_is_that_of_torchvision(count, columns):
    from torchvision.utils import make_grid

    images = torch.randint(0, 256, (count, 3, 4, 6), dtype=torch.uint8)
    large = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = make_grid(large, nrow=columns, padding=2 if count > 1 else 0)
    assert torch.equal(grid_pixels(images, columns, scale=2), expected)
