"""Texts and images of people are read as they meant them, or refused in a line that names the file and the place."""

import codecs
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_parts import composed, naming, write_tar

from migm.bases.inputs import Prompts, read_prompts
from migm.cifar10 import classes as cifar10
from migm.cifar10.photos import Photos
from migm.config.building import load
from migm.config.roots import GenerateConfig
from migm.human_eval.pairs import read_key
from migm.human_eval.votes import read_votes
from migm.reporting.audit import audit
from migm.reporting.pictures import Pictures
from migm.reporting.trials import read_trial
from migm.runtime.errors import UserError
from migm.runtime.jsonl import append_line, parse_lines, read_lines
from migm.runtime.reading import files_of, read_picture, read_text
from migm.sampling.gallery import Gallery, read_image
from migm.sampling.generation import photo_and_mask
from migm.trajectories.tars import FIELDS, KINDS, read_images

PROMPTS = ["a red dog", "ein Pferd auf grünem Gras", "一匹の馬"]
FORMS: dict[str, Callable[[str], bytes]] = {
    "plain": lambda text: text.encode(),
    "mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-16-be": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "utf-32": lambda text: text.encode("utf-32"),
    "windows": lambda text: text.replace("\n", "\r\n").encode(),
    "notepad": lambda text: codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode(),
    "powershell": lambda text: codecs.BOM_UTF16_LE + text.replace("\n", "\r\n").encode("utf-16-le"),
    "old mac": lambda text: text.replace("\n", "\r").encode(),
    "joined": lambda text: "".join(f"\ufeff{line}\n" for line in text.splitlines()).encode(),
}
every_form = pytest.mark.parametrize("form", FORMS)


def lines(items: list[Any]) -> str:
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


# Texts.


@every_form
def test_the_same_prompts_are_the_same_in_every_form(tmp_path, form):
    texts = {"a.txt": "\n".join(PROMPTS) + "\n", "a.jsonl": lines([{"prompt": p} for p in PROMPTS])}
    texts |= {"a.json": json.dumps(PROMPTS, indent=1, ensure_ascii=False), "B.TXT": "\n".join(PROMPTS)}
    found = []
    for name, text in texts.items():
        (tmp_path / name).write_bytes(FORMS[form](text))
        found.append(read_prompts(tmp_path / name))
    assert found == [PROMPTS] * len(texts)
    (tmp_path / "plain.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    assert Prompts(tmp_path / "a.txt").fingerprint() == Prompts(tmp_path / "plain.txt").fingerprint()


@every_form
def test_a_folder_of_prompts_is_read_in_every_form_without_what_systems_put_there(tmp_path, form):
    for number, prompt in enumerate(PROMPTS):
        (tmp_path / f"{number}.txt").write_bytes(FORMS[form](f"{prompt}\n"))
        (tmp_path / f"._{number}.txt").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")
    (tmp_path / "__MACOSX").mkdir()
    for name in (".DS_Store", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"\x00\x00\x00\x01Bud1")
    assert read_prompts(tmp_path) == PROMPTS
    (tmp_path / "3.TXT").write_text("a ship")
    assert read_prompts(tmp_path) == [*PROMPTS, "a ship"]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", "a dog\rein\r\ngrünes Pferd".encode("latin-1"), ["a.txt, line 3: byte 14", "0xfc", "iconv"]),
        ("a.json", '["grün"]'.encode("cp1252"), ["a.json, line 1: byte 5", "UTF-8"]),
        ("a.jsonl", b'"a dog"\n"\xff"', ["a.jsonl, line 2: byte 10", "0xff"]),
        ("a.txt", codecs.BOM_UTF16_LE + "a dog\ngr".encode("utf-16-le") + b"\x00", ["a.txt, line 2", "UTF-16"]),
        ("a.txt", "a dog\nein Pferd".encode("utf-16-le"), ["a.txt, line 1 holds a NUL", "UTF-16 without"]),
        ("a.txt", b"a dog\n\x00\x00\n", ["a.txt, line 2 holds a NUL"]),
    ],
)
def test_what_cannot_be_decoded_is_refused_by_file_line_and_byte(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=naming("prompts=", *words)) as refused:
        read_prompts(tmp_path / name, "prompts")
    assert len(str(refused.value).splitlines()) == 1


@every_form
def test_results_copied_through_other_systems_are_read_and_continued(tmp_path, form):
    path, entries = tmp_path / "results.jsonl", [{"a": 1}, {"b": "grün"}]
    path.write_bytes(FORMS[form](lines(entries)))
    assert read_lines(path) == entries
    append_line(path, {"c": 3})
    append_line(path, {"d": 4})
    assert read_lines(path) == [*entries, {"c": 3}, {"d": 4}]
    assert parse_lines(FORMS[form](lines(entries)), "x") == entries


@pytest.mark.parametrize("last", ['{"a": 1', "a word"])
def test_a_file_in_utf_16_without_a_whole_line_is_refused_and_kept(tmp_path, last):
    """Nothing that is appended here begins so: taken for cut off, a damaged file would count as empty."""
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(codecs.BOM_UTF16_LE + last.encode("utf-16-le"))
    before = path.read_bytes()
    for task in (lambda: read_lines(path), lambda: append_line(path, {"b": 2})):
        with pytest.raises(UserError, match=naming(f"{path}, line 1", "not a JSON object")):
            task()
    assert path.read_bytes() == before
    path.write_bytes(codecs.BOM_UTF16_LE)
    assert read_lines(path) == []


@pytest.mark.parametrize("form", sorted(FORMS.keys() - {"joined"}))
def test_a_last_line_that_was_cut_off_is_still_ignored(tmp_path, form):
    path = tmp_path / "results.jsonl"
    path.write_bytes(FORMS[form](lines([{"a": 1}]) + '{"b": "g'))
    assert read_lines(path) == [{"a": 1}]
    append_line(path, {"c": 3})
    assert read_lines(path) == [{"a": 1}, {"c": 3}]
    path.write_bytes(lines([{"a": 1}]).encode() + b"\x00" * 9)  # as a power failure leaves it
    assert read_lines(path) == [{"a": 1}]


@every_form
def test_a_report_counts_every_line(tmp_path, form):
    point = {"base": "b", "sampling": "s", "accelerator": "vanilla", "num_steps": 4, "num_full_steps": 4}
    record = {**point, "metric": "ffe", "value": 4.0, "higher_is_better": False}
    other = {**record, "num_steps": 8, "num_full_steps": 8}
    (tmp_path / "results.jsonl").write_bytes(FORMS[form](lines([record, other])))
    ((study,), problems) = audit([tmp_path / "results.jsonl"])
    assert [record["num_steps"] for record in study.records] == [4, 8]
    assert [problem for problem in problems if problem.kind == "damaged"] == []


KEY = {"study": "abc", "pairs": {"1": {"left": "method"}}}


@every_form
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_votes_are_read_as_spreadsheets_write_them(tmp_path, form, separator):
    rows = ["study,pair,rater,choice", "abc,1,Jürgen,left", "abc,1,anna,right"]
    text = "\n".join(row.replace(",", separator) for row in rows) + "\n"
    (tmp_path / "votes.csv").write_bytes(FORMS[form](text))
    votes, problems = read_votes([tmp_path / "votes.csv"], KEY)
    assert [(vote.rater, vote.winner) for vote in votes] == [("Jürgen", "method"), ("anna", "baseline")]
    assert problems == []
    (tmp_path / "key.json").write_bytes(FORMS[form](json.dumps(KEY, indent=1)))
    assert read_key(tmp_path / "key.json") == KEY


def test_votes_that_cannot_be_read_are_refused_by_line(tmp_path):
    path = tmp_path / "votes.csv"
    path.write_bytes("study,pair,rater,choice\nabc,1,Jürgen,left\n".encode("latin-1"))
    with pytest.raises(UserError, match=naming("votes=", "votes.csv, line 2: byte 32")):
        read_votes([path], KEY)
    path.write_text(f'study,pair,rater,choice\nabc,1,"{"x" * 200_000}')
    with pytest.raises(UserError, match=naming("votes=", "votes.csv, line 2", "field")):
        read_votes([path], KEY)


def test_a_record_of_a_trial_that_cannot_be_decoded_is_named(tmp_path):
    (tmp_path / "trial.json").write_bytes(b'{"format": "\xfc"}')
    with pytest.raises(UserError, match=naming("trial.json, line 1: byte 13")):
        read_trial(tmp_path)


# Folders.


def test_what_systems_put_into_a_folder_is_none_of_its_files(tmp_path):
    for name in ("b.png", "a.PNG", "sub/c.png", "._b.png", "sub/._c.png", "__MACOSX/b.png", "Thumbs.db", "d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    shown = [path.relative_to(tmp_path).as_posix() for path in files_of(tmp_path, ".png", deep=True)]
    assert shown == ["a.PNG", "b.png", "sub/c.png"]
    assert [path.name for path in files_of(tmp_path)] == ["a.PNG", "b.png", "d.txt", "sub"]


def test_galleries_of_macos_are_galleries(tmp_path):
    image = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4)
    settings = {"base": "b", "accelerator": "reuse", "num_steps": 4, "num_full_steps": 2}
    Gallery(tmp_path, [3], settings).add(0, 1, image, {})
    for path in list(tmp_path.glob("0*")):
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")
    assert list(Gallery(tmp_path, [3], settings).done) == [(0, 1)]
    pictures = Pictures()
    pictures.add_gallery(tmp_path, "b")
    assert pictures.keys(["reuse 4,2"]) == [(0, 1)]


def test_tars_beside_files_of_macos_are_read(tmp_path):
    fields = {name: torch.zeros(3) for name in FIELDS}
    write_tar(tmp_path / "a.tar", [(f"0_{kind}", fields) for kind in KINDS])
    (tmp_path / "._a.tar").write_bytes(b"\x00\x05\x16\x07")
    assert [name for _, name, _ in read_images(tmp_path)] == ["0"]


# Images.


SHOWN = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)  # what its maker sees


def png(image: Image.Image, **options: Any) -> io.BytesIO:
    data = io.BytesIO()
    image.save(data, "PNG", **options)
    data.seek(0)
    return data


def pixels(image: Image.Image | io.BytesIO | Path, mode: str = "RGB", **options: Any) -> list[Any]:
    file = png(image, **options) if isinstance(image, Image.Image) else image
    return np.array(read_picture(file, "image=x", mode)).tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_photo_is_upright_as_its_camera_says(tmp_path, orientation, kind):
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's number of what makes the upright one as it is kept
    kept = Image.fromarray(SHOWN)
    if orientation in turn:
        kept = kept.transpose(Image.Transpose(turn[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    kept.save(tmp_path / "a.png", kind, exif=exif, **options)
    assert read_image(tmp_path / "a.png", "image").permute(1, 2, 0).tolist() == SHOWN.tolist()
    assert Photos(tmp_path)[0].permute(1, 2, 0).tolist() == SHOWN.tolist()


def test_plain_photos_are_the_pixels_that_pillow_decodes(tmp_path):
    generator = np.random.default_rng(0)
    noise = Image.fromarray(generator.integers(0, 256, (40, 30, 3), dtype=np.uint8))
    opaque = noise.copy()
    opaque.putalpha(255)
    for image, name, options in (
        (noise, "a.jpg", {"quality": 90}),
        (noise.convert("L"), "b.jpg", {}),
        (noise.convert("CMYK"), "c.jpg", {}),
        (noise, "d.png", {}),
        (noise.convert("P"), "e.png", {}),
        (noise.convert("1"), "f.png", {}),
        (opaque, "g.png", {}),
        (noise, "h.bmp", {}),
    ):
        image.save(tmp_path / name, **options)
        with Image.open(tmp_path / name) as plain:
            assert pixels(tmp_path / name) == np.array(plain.convert("RGB")).tolist(), name
            assert pixels(tmp_path / name, "L") == np.array(plain.convert("L")).tolist(), name


def test_sixteen_bits_keep_their_brightness(tmp_path):
    values = np.array([[0, 128, 300, 32768, 65535]], dtype=np.uint16)
    wanted = [[0, 0, 1, 128, 255]]
    assert pixels(Image.fromarray(values), "L") == wanted
    assert pixels(Image.fromarray(values)) == [[[v] * 3 for v in wanted[0]]]
    Image.fromarray(values).save(tmp_path / "a.tif")
    Image.fromarray(values.astype(">u2")).save(tmp_path / "b.tif")
    assert pixels(tmp_path / "a.tif", "L") == pixels(tmp_path / "b.tif", "L") == wanted
    assert read_image(tmp_path / "a.tif", "mask", "L").tolist() == [wanted]
    (tmp_path / "c.pgm").write_bytes(b"P5 5 1 65535\n" + values.astype(">u2").tobytes())
    assert pixels(tmp_path / "c.pgm", "L") == wanted
    Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)).save(tmp_path / "d.tif")
    assert pixels(tmp_path / "d.tif", "L") == [[0, 128, 255]]
    assert pixels(Image.fromarray(values), "L", transparency=65535)[0][-1] == 0


@pytest.mark.parametrize("largest", [2.0, -1.0, float("nan"), 70000])
def test_numbers_of_an_unknown_range_are_refused(tmp_path, largest):
    dtype = np.int32 if largest == 70000 else np.float32
    Image.fromarray(np.array([[0, largest]], dtype=dtype)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=naming("image=x cannot be read", "8 or 16 bits a channel")):
        read_picture(tmp_path / "a.tif", "image=x")


def layer(*values: tuple[int, int, int, int]) -> Image.Image:
    return Image.fromarray(np.array([values], dtype=np.uint8), "RGBA")


def test_a_photo_lies_on_white_paper():
    found = pixels(layer((10, 20, 30, 255), (0, 0, 0, 0), (255, 255, 255, 0), (100, 0, 0, 128)))
    assert found == [[[10, 20, 30], [255, 255, 255], [255, 255, 255], [177, 127, 127]]]
    gray = Image.merge("LA", (Image.new("L", (1, 1), 9), Image.new("L", (1, 1), 0)))
    assert pixels(gray) == [[[255] * 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert pixels(palette, transparency=0) == [[[255] * 3, [40, 50, 60]]]
    assert pixels(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3)) == [[[255] * 3]]


def test_of_a_mask_only_what_is_painted_is_white():
    """White strokes on a transparent layer, whatever colour an editor keeps under what is transparent."""
    painted = layer((255, 255, 255, 255), (255, 255, 255, 0), (0, 0, 0, 0), (0, 0, 0, 255), (255, 255, 255, 100))
    assert pixels(painted, "L") == [[255, 0, 0, 0, 100]]


def test_in_painting_sees_the_photo_upright_and_the_mask_as_painted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(SHOWN).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photo.png", exif=exif)
    asked = [f"image={tmp_path / 'photo.png'}", f"mask={tmp_path / 'mask.png'}"]
    config = load(composed("generate", "+experiment=tiny_shortcut", *asked), GenerateConfig)
    layer((255, 255, 255, 255), (255, 255, 255, 0)).save(tmp_path / "mask.png")
    given = photo_and_mask(config)
    assert given is not None
    assert given[0].permute(1, 2, 0).tolist() == SHOWN.tolist()
    assert given[1].tolist() == [[[True, False]]]
    for nothing in (layer((255, 255, 255, 0)), Image.fromarray(np.array([[300]], dtype=np.uint16))):
        nothing.save(tmp_path / "mask.png")
        with pytest.raises(UserError, match=naming("mask=", "no white pixel")):
            photo_and_mask(config)


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    for name in ("a.gif", "b.png", "c.webp"):
        red.save(tmp_path / name, save_all=True, append_images=[blue], lossless=True)
        r, g, b = pixels(tmp_path / name)[0][0]
        assert (r, g, b) == (255, 0, 0), name


def test_damaged_images_are_refused_by_name(tmp_path):
    data = png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))).getvalue()
    for damaged in (data[: len(data) // 2], b"no image", b"", data[:30] + b"x" * 40 + data[70:]):
        (tmp_path / "a.png").write_bytes(damaged)
        for read in (lambda: read_image(tmp_path / "a.png", "image"), lambda: Photos(tmp_path)[0]):
            with pytest.raises(UserError, match=naming("a.png cannot be read as an image")) as refused:
                read()
            assert "0x" not in str(refused.value)  # the address of an object in this process


def test_zips_of_macos_hold_photos_alone(tmp_path):
    shown = png(Image.fromarray(SHOWN)).getvalue()
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name, data in {"a/1.png": shown, "__MACOSX/a/._1.png": b"\x00", "a/._2.png": b"\x00"}.items():
            archive.writestr(name, data)
    assert Photos(tmp_path / "photos.zip").names == ["a/1.png"]
    photo = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(photo, "JPEG")
    with zipfile.ZipFile(tmp_path / "cifar10-test.zip", "w") as archive:
        for name, data in {"cat/1.jpg": photo.getvalue(), "__MACOSX/cat/._1.jpg": b"\x00"}.items():
            archive.writestr(name, data)
    images, labels = cifar10.load(tmp_path, "test")
    assert (len(images), labels.tolist()) == (1, [cifar10.CLASSES.index("cat")])


def test_a_page_shows_pictures_of_any_kind(tmp_path):
    for name, image in {"a.png": layer((1, 2, 3, 0)), "b.tif": Image.new("CMYK", (700, 4))}.items():
        image.save(tmp_path / name)
        Pictures().add_preview("vanilla 4", tmp_path / name)


def test_a_text_is_plain_whatever_lies_beside_it(tmp_path):
    (tmp_path / "a.json").write_bytes(codecs.BOM_UTF8 + b'{"a": 1}\r\n')
    assert read_text(tmp_path / "a.json") == '{"a": 1}\n'
