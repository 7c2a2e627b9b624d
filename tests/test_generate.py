"""`migm.generate` as a user starts it: labels and prompts, grid and folder, restarts, in-painting, refusals."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_commands
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from test_commands import refused
from tiny_parts import composed, naming, tiny
from torch import Tensor

import migm.runtime.files
import migm.sampling.gallery
import migm.sampling.generation
from migm.bases.base import Inputs
from migm.bases.maskgit import MaskGIT
from migm.config.building import build, load
from migm.config.roots import GenerateConfig
from migm.runtime.errors import UserError
from migm.sampling.gallery import Gallery, read_image, slug

call = test_commands.call  # the fixture
FLAT = {"sampling.draw.inverse_temperature": 0.3}  # else the random base makes some images twice


class Captioned(MaskGIT):
    """The tiny base asked by prompts: of as many words as the class's number."""

    def encode(self, inputs: Inputs, guided: bool):
        if isinstance(inputs, Tensor):
            raise UserError(f"labels={inputs.tolist()}: this base draws prompts")
        return super().encode(torch.tensor([len(prompt.split()) for prompt in inputs]), guided)


@pytest.fixture(scope="module")
def shared() -> DictConfig:
    """The command's config for the vanilla tiny base; composing it takes longer than all the rest."""
    return composed("generate", "+experiment=tiny_shortcut", "accelerator=vanilla", "device=cpu")


@pytest.fixture
def generate(shared, tmp_path, capfd) -> Callable[..., str]:
    """Run what the command runs with some keys changed -> what it printed, on one line."""

    def run(changes: dict[str, Any] | None = None, **keys: Any) -> str:
        cfg = copy.deepcopy(shared)
        for key, value in {"paths.output_dir": str(tmp_path), **FLAT, **(changes or {}), **keys}.items():
            OmegaConf.update(cfg, key, str(value) if isinstance(value, Path) else value, merge=False)
        migm.sampling.generation.run(load(cfg, GenerateConfig))
        return " ".join(capfd.readouterr().out.split())

    return run


def prompts(output: Path, *lines: str) -> dict[str, Any]:
    """Changes that make the tiny base one for prompts, those of a file."""
    (output / "own.txt").write_text("\n".join(lines))
    source = {"_target_": "migm.bases.inputs.Prompts", "file": str(output / "own.txt")}
    return {"base._target_": "test_generate.Captioned", "evalset.inputs": source}


@pytest.fixture
def decoded(monkeypatch) -> list[Tensor]:
    """The tokens of every batch that is decoded."""
    batches, decode = [], MaskGIT.decode

    def watched(self, tokens):
        batches.append(tokens.clone())
        return decode(self, tokens)

    monkeypatch.setattr(MaskGIT, "decode", watched)
    return batches


def images(folder: Path) -> dict[str, bytes]:
    """The pixels of all PNGs of a folder."""
    return {path.name: read_image(path, "").numpy().tobytes() for path in sorted(folder.glob("*.png"))}


def pictures(path: Path, columns: int, side: int = 48) -> list[np.ndarray]:
    """The single images of a grid, row by row."""
    with Image.open(path) as grid:
        pixels = np.array(grid)
    rows = (len(pixels) - 3) // (side + 3)
    assert pixels.shape[:2] == (rows * (side + 3) + 3, columns * (side + 3) + 3)
    corners = [(3 + r * (side + 3), 3 + c * (side + 3)) for r in range(rows) for c in range(columns)]
    return [pixels[y : y + side, x : x + side] for y, x in corners]


def enlarged(image: Tensor) -> np.ndarray:
    """An image (3, h, w) as the grid shows it."""
    return image.permute(1, 2, 0).numpy().repeat(3, 0).repeat(3, 1)


def test_the_command_fills_grid_and_folder_and_says_how_each_image_was_made(call, tmp_path):
    folder = tmp_path / "kept"
    asked = ["labels=[3,7]", "seeds=[0,5]", "seed=2", f"folder={folder}"]
    shared = ["+experiment=tiny_shortcut", "accelerator=vanilla", f"paths.output_dir={tmp_path}", "device=cpu"]
    code, out, err = call("generate", [*shared, *asked, "sampling.draw.inverse_temperature=0.3"])
    assert code == 0, err
    for words in ("12/12 steps", "4 images of 16x16", "ms a step", "ms decoding each"):
        assert words in out
    stems = ["00000_0_3", "00000_5_3", "00001_0_7", "00001_5_7"]
    made = {".migm-images", *(f"{stem}{end}" for stem in stems for end in (".png", ".json"))}
    assert set(os.listdir(folder)) == made
    grid = pictures(tmp_path / "tiny_shortcut" / "images.png", columns=2)
    single = [enlarged(read_image(folder / f"{stem}.png", "")) for stem in stems]
    assert [image.tobytes() for image in single] == [picture.tobytes() for picture in grid]
    assert len(set(images(folder).values())) == 4
    entry = json.loads((folder / "00001_5_7.json").read_text())
    known = {"label": 7, "index": 1, "seed": 5, "run_seed": 2, "accelerator": "vanilla", "predictor": ""}
    known |= {"num_steps": 6, "num_full_steps": 6, "width": 16, "height": 16, "initial": None, "image": None}
    assert {key: entry[key] for key in known} == known
    assert "draw=InverseCDF(inverse_temperature=0.3)" in entry["sampling"]
    base = build(tiny(tmp_path, "seed=2", command="generate", root=GenerateConfig).base)
    assert (entry["base"], entry["decoder"]) == (base.fingerprint(), base.decoder_fingerprint())
    assert min(entry["sampling_seconds"], entry["decoding_seconds"]) > 0
    assert {"device", "torch", "migm", "commit"} <= entry.keys()


def test_the_command_refuses_in_one_line(call, tmp_path):
    shared = ["+experiment=tiny_shortcut", "accelerator=vanilla", f"paths.output_dir={tmp_path}", "device=cpu"]
    outcome = call("generate", [*shared, "labels=[1]", "prompt='a truck, red'"])
    refused(outcome, "labels=[1]", "prompt=a truck, red")


def test_an_image_is_the_same_at_any_batch_size_and_beside_any_other(generate, decoded, tmp_path):
    for size in (None, 1, 2):
        generate(labels=[1, 2], seeds=[4, 0, 9], folder=tmp_path / f"{size}", batch_size=size)
    generate(labels=[2], seeds=[9], folder=tmp_path / "alone")
    assert [len(tokens) for tokens in decoded] == [3, 3, *6 * [1], 2, 1, 2, 1, 1]
    made = {name: images(tmp_path / name) for name in ("None", "1", "2", "alone")}
    assert len(set(made["None"].values())) == 6
    assert made["None"] == made["1"] == made["2"]
    assert made["alone"]["00000_9_2.png"] == made["None"]["00001_9_2.png"]


def test_nothing_given_draws_the_first_ten_inputs_of_the_evalset(generate, tmp_path):
    generate(seeds=[0], folder=tmp_path / "labels")
    labels = images(tmp_path / "labels")
    assert list(labels) == [f"{i:05d}_0_{i}.png" for i in range(10)]
    generate(prompts(tmp_path, "a", "a b", "a b c"), seeds=[0], folder=tmp_path / "prompts")
    shown = images(tmp_path / "prompts")
    assert list(shown) == ["00000_0_a.png", "00001_0_a_b.png", "00002_0_a_b_c.png"]
    assert list(shown.values()) == list(labels.values())[1:4]


def test_prompts_come_from_the_command_line_or_a_file(generate, tmp_path):
    asked, base = tmp_path / "asked.jsonl", prompts(tmp_path, "unused")
    asked.write_text('{"prompt": "two words"}\n{"prompt": "A RED truck, on the road!"}\n')
    generate(base, prompts=asked, seeds=[3], folder=tmp_path / "file")
    generate(base, prompt=" A RED truck, on the road! ", seeds=[3], folder=tmp_path / "line")
    file, line = images(tmp_path / "file"), images(tmp_path / "line")
    assert list(file) == ["00000_3_two_words.png", "00001_3_a_red_truck_on_the_road.png"]
    assert line == {"00000_3_a_red_truck_on_the_road.png": file["00001_3_a_red_truck_on_the_road.png"]}
    entry = json.loads((tmp_path / "line" / "00000_3_a_red_truck_on_the_road.json").read_text())
    assert entry["prompt"] == "A RED truck, on the road!"
    assert "label" not in entry


def test_a_restart_makes_only_what_is_missing(generate, decoded, tmp_path):
    folder, output = tmp_path / "kept", tmp_path / "tiny_shortcut" / "images.png"
    generate(labels=[3, 7], seeds=[0, 1, 2], folder=folder)
    whole, grid = images(folder), output.read_bytes()
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    decoded.clear()
    assert "6 of 6 images are in" in generate(labels=[3, 7], seeds=[0, 1, 2], folder=folder)
    assert decoded == []
    (folder / "00000_1_3.png").unlink()
    (folder / "00001_2_7.json").unlink()  # as if killed between the two files
    assert "4 of 6 images are in" in generate(labels=[3, 7], seeds=[0, 1, 2], folder=folder)
    assert [len(tokens) for tokens in decoded] == [1, 1]
    assert images(folder) == whole
    assert output.read_bytes() == grid
    again = {path.name for path in folder.iterdir() if path.stat().st_mtime_ns != times[path.name]}
    assert again == {f"{stem}{end}" for stem in ("00000_1_3", "00001_2_7") for end in (".png", ".json")}
    decoded.clear()
    generate(labels=[3, 7, 9], seeds=[0, 5, 1, 2], folder=folder, batch_size=3)
    assert [len(tokens) for tokens in decoded] == [1, 1, 3, 1]
    assert images(folder).items() > whole.items()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"sampling.num_steps": 5}, "num_steps"),
        ({"sampling.draw.inverse_temperature": 0.7}, "sampling"),
        ({"accelerator.policy": {"_target_": "migm.accelerators.refresh.Uniform", "num_full_steps": 6}}, "settings"),
        ({"labels": [7, 3]}, "label"),
        ({"seed": 1}, "run_seed"),
    ],
)
def test_a_folder_of_other_settings_is_refused_and_left_alone(generate, tmp_path, changes, word):
    folder = tmp_path / "kept"
    asked = {"labels": [3], "seeds": [0], "folder": folder}
    generate(asked)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=naming(f"folder={folder}", "00000_0_3.json", word)):
        generate({**asked, **changes})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_grid_shows_what_fits_and_the_folder_keeps_the_rest(generate, monkeypatch, tmp_path):
    monkeypatch.setattr(migm.sampling.gallery, "GRID_TOKENS", 5 * 16)
    with pytest.raises(UserError, match=naming("6 images", "folder=")):
        generate(labels=[3, 7, 5], seeds=[0, 1])
    assert "(the first 2 x 2)" in generate(labels=[3, 7, 5], seeds=[0, 1], folder=tmp_path / "kept")
    assert len(pictures(tmp_path / "tiny_shortcut" / "images.png", columns=2)) == 4
    assert len(images(tmp_path / "kept")) == 6


@pytest.fixture
def photo(tmp_path) -> dict[str, str]:
    """An image of the tiny base's size, and a mask of another whose white touches the last two columns of tokens."""
    blocks = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(blocks.repeat(4, 0).repeat(4, 1)).save(tmp_path / "photo.png")
    mask = np.zeros((40, 32), dtype=np.uint8)
    mask[3::10, 19] = 255  # one pixel of each token in the third column
    mask[:, 24:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return {"image": str(tmp_path / "photo.png"), "mask": str(tmp_path / "mask.png")}


def test_in_painting_keeps_the_tokens_outside_the_mask(generate, decoded, photo, tmp_path):
    generate(photo, labels=[3, 7], seeds=[0, 1, 2], folder=tmp_path / "kept")
    torch.manual_seed(0)
    base = build(tiny(tmp_path, command="generate", root=GenerateConfig).base)
    given = read_image(tmp_path / "photo.png", "image")
    known = base.tokenize(given[None]).unflatten(1, (4, 4))
    made = torch.cat(decoded).unflatten(1, (4, 4))
    assert len(known.unique()) > 3
    assert (made[:, :, :2] == known[:, :, :2]).all()
    assert (made[:, :, 2:] != known[:, :, 2:]).any(0).all()  # every token under the mask is another in some image
    new = made[:, :, 2:].flatten(1)
    assert len(new.unique(dim=0)) == 6
    assert int(new.max()) < base.spec.vocab_size
    grid = pictures(tmp_path / "tiny_shortcut" / "images.png", columns=4)
    assert [(picture == enlarged(given)).all() for picture in grid] == 2 * [True, False, False, False]
    entry = json.loads((tmp_path / "kept" / "00001_1_7.json").read_text())
    assert entry["initial"]
    assert entry["image"] == photo["image"]


def test_in_painting_under_a_white_mask_is_generation(generate, photo, tmp_path):
    Image.new("L", (3, 5), 255).save(tmp_path / "mask.png")
    generate(photo, labels=[3], seeds=[0, 1], folder=tmp_path / "painted")
    generate(labels=[3], seeds=[0, 1], folder=tmp_path / "free")
    assert images(tmp_path / "painted") == images(tmp_path / "free")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": "a truck"}, ["prompts=['a truck']", "classes"]),
        ({"prompt": "a truck", "prompts": "none.txt"}, ["prompt=a truck", "prompts=none.txt"]),
        ({"prompt": " "}, ["prompt=", "empty"]),
        ({"prompts": "none.txt"}, ["prompts=none.txt", "no such file"]),
        ({"prompts": "{tmp}/empty.txt"}, ["prompts=", "empty.txt", "no prompt"]),
        ({"labels": [3, 12], "folder": "{tmp}/kept"}, ["labels=[12]", "0 to 9"]),
        ({"folder": "{tmp}/empty.txt"}, ["folder=", "empty.txt", "is a file"]),
        ({"folder": "{tmp}"}, ["folder=", "foreign.json"]),
        ({"image": "{tmp}/photo.png"}, ["image=", "mask=None"]),
        ({"mask": "{tmp}/mask.png"}, ["image=None", "mask="]),
        ({"image": "none.png", "mask": "{tmp}/mask.png"}, ["image=none.png", "no such file"]),
        ({"image": "{tmp}/mask.png", "mask": "{tmp}/mask.png"}, ["image of 32x40", "16x16"]),
        ({"image": "{tmp}/photo.png", "mask": "{tmp}/empty.txt"}, ["mask=", "empty.txt", "image"]),
        ({"image": "{tmp}/photo.png", "mask": "{tmp}/black.png"}, ["mask=", "black.png", "no white pixel"]),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(generate, photo, tmp_path, changes, words):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "foreign.json").write_text("[1]")
    Image.new("L", (16, 16)).save(tmp_path / "black.png")
    before = sorted(tmp_path.iterdir())
    put = {
        key: value.replace("{tmp}", str(tmp_path)) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    with pytest.raises((UserError, FileNotFoundError), match=naming(*words)):
        generate(put)
    assert sorted(tmp_path.iterdir()) == before


def test_labels_are_refused_by_a_base_that_draws_prompts(generate, tmp_path):
    with pytest.raises(UserError, match=naming("labels=[1]", "prompts")):
        generate(prompts(tmp_path, "a"), labels=[1])


def test_a_kill_while_writing_leaves_no_image_without_its_description(monkeypatch, tmp_path):
    gallery, image = Gallery(tmp_path, ["a cat"], {"num_steps": 6}), torch.zeros(3, 4, 4, dtype=torch.uint8)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            gallery.add(0, 1, image, {})
    assert [path.name for path in tmp_path.iterdir()] == [".migm-images"]
    again = Gallery(tmp_path, ["a cat"], {"num_steps": 6})
    assert again.done == {}
    again.add(0, 1, image, {})
    assert sorted(os.listdir(tmp_path)) == [".migm-images", "00000_1_a_cat.json", "00000_1_a_cat.png"]
    assert Gallery(tmp_path, ["a cat"], {"num_steps": 6}).done == {(0, 1): tmp_path / "00000_1_a_cat.png"}


def test_file_names_are_of_the_first_words():
    assert slug(7) == "7"
    assert slug("A red/blue ../truck, on the wide road at night") == "a_red_blue_truck_on_the"
    assert slug("!?") == ""
    assert slug("ein grüner Vogel") == "ein_grüner_vogel"
    assert len(slug("x" * 300)) == 40
