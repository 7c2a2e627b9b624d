"""What images are asked to show: labels in turn, or the prompts of a file in turn."""

import json
from pathlib import Path

import pytest
import torch
from tiny_parts import naming

from migm.bases.inputs import Classes, Prompts, read_prompts
from migm.runtime.errors import UserError

PROMPTS = ["a red dog", "ein Pferd auf grünem Gras", 'a "truck",\u2028parked']  # a separator that ends no line


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.fixture
def file(tmp_path) -> Path:
    return written(tmp_path, "prompts.txt", "".join(f"prompt {i}\n" for i in range(5)))


def lines(items: list) -> str:
    return "\n".join(json.dumps(item, ensure_ascii=False) for item in items)


FORMS = {
    "plain.txt": "\n".join(PROMPTS),
    "windows.txt": "\r\n".join(PROMPTS),
    "spaced.txt": "\n\n".join(f"  {prompt}\t" for prompt in PROMPTS) + "\n \n",
    "strings.jsonl": lines(PROMPTS) + "\n",
    "objects.jsonl": "\n" + lines([{"id": 7, "prompt": prompt} for prompt in PROMPTS]),
    "strings.json": json.dumps(PROMPTS, indent=1),
    "objects.json": json.dumps([{"prompt": f" {prompt} ", "seed": 1} for prompt in PROMPTS]),
    "by_name.json": json.dumps({f"image {i}": prompt for i, prompt in enumerate(PROMPTS)}),
    "records_by_name.json": json.dumps({str(i): {"prompt": prompt} for i, prompt in enumerate(PROMPTS)}),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_same_prompts_are_read_from_every_form_of_file(tmp_path, name):
    assert read_prompts(written(tmp_path, name, FORMS[name])) == PROMPTS


def test_a_folder_of_one_prompt_a_file_is_read_in_the_order_of_names(tmp_path):
    """As ELLA's DPG-Bench: `prompts/1.txt`, `prompts/COCOval2014….txt`, each a paragraph."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name, text in (
        ("b.txt", "A long\nparagraph. "),
        ("10.txt", PROMPTS[1] + "\n"),
        ("2.txt", PROMPTS[0]),
        ("x.csv", "-"),
    ):
        written(folder, name, text)
    assert read_prompts(folder) == [PROMPTS[1], PROMPTS[0], "A long paragraph."]
    assert Prompts(folder).fingerprint().startswith("3 prompts ")
    written(folder, "empty.txt", "\n")
    with pytest.raises(UserError, match=naming("empty.txt", "neither a prompt")):
        read_prompts(folder)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("prompts.csv", "a dog", ["inputs.file=", "prompts.csv", ".txt, .jsonl or .json"]),
        ("prompts", "a dog", [".txt, .jsonl or .json"]),
        ("broken.json", '["a dog",', ["broken.json is not valid JSON"]),
        ("broken.jsonl", '"a dog"\n\n{"prompt": \n', ["broken.jsonl, line 3 is not valid JSON"]),
        ("number.jsonl", '"a dog"\n\n5\n', ["number.jsonl, line 3: neither a prompt"]),
        ("empty.json", '["a dog", ""]', ["empty.json, entry 2: neither a prompt"]),
        ("blank.json", '[{"prompt": " "}]', ["blank.json, entry 1"]),
        ("foreign.json", '[{"text": "a dog"}]', ["foreign.json, entry 1"]),
        ("nested.json", '{"prompts": ["a dog"]}', ["nested.json, entry 1"]),
        ("text.json", '"a dog"', ["inputs.file=", "text.json", "a list or an object"]),
        ("number.json", "5", ["inputs.file=", "number.json", "a list or an object"]),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused_naming_the_place(tmp_path, name, text, words):
    with pytest.raises(UserError, match=naming(*words)):
        read_prompts(written(tmp_path, name, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=naming("inputs.file=", "none.txt", "no such file")):
        Prompts(tmp_path / "none.txt")


@pytest.mark.parametrize("images", [range(12), [11, 3, 4], [10**9 + 3]])
def test_prompts_and_labels_come_in_turn_as_a_function_of_the_images_number(file, images):
    assert Prompts(file)(torch.tensor(images)) == [f"prompt {i % 5}" for i in images]
    assert Classes(10)(torch.tensor(images)).tolist() == [i % 10 for i in images]


def test_a_part_of_the_prompts_comes_in_turn_by_itself(file):
    assert Prompts(file, 1, 4)(torch.arange(5)) == ["prompt 1", "prompt 2", "prompt 3", "prompt 1", "prompt 2"]
    assert Prompts(file, first=3)(torch.arange(3)) == ["prompt 3", "prompt 4", "prompt 3"]


@pytest.mark.parametrize(("first", "last"), [(5, None), (0, 0), (3, 2)])
def test_an_empty_part_is_refused_naming_the_keys(file, first, last):
    with pytest.raises(UserError, match=naming("inputs.file=", f"inputs.first={first}", f"inputs.last={last}")):
        Prompts(file, first, last)


def test_an_empty_file_is_refused(tmp_path):
    for name, text in (("none.txt", "\n \n"), ("none.json", "[]"), ("none.jsonl", "")):
        with pytest.raises(UserError, match=naming("inputs.file=", name, "has no prompts")):
            Prompts(written(tmp_path, name, text))


def test_a_fingerprint_is_that_of_the_prompts_wherever_they_lie(tmp_path, file):
    one = Prompts(file).fingerprint()
    assert one == Prompts(written(tmp_path, "same.json", json.dumps([f"prompt {i}" for i in range(5)]))).fingerprint()
    assert one.startswith("5 prompts ")
    turned = written(tmp_path, "turned.txt", "".join(f"prompt {i}\n" for i in (0, 2, 1, 3, 4)))
    sources = [Prompts(file), Prompts(file, 1), Prompts(file, 0, 4), Prompts(turned), Classes(10), Classes(5)]
    assert len({source.fingerprint() for source in sources}) == 6
    assert Classes(10).fingerprint() == "10 classes"
