"""The texts that tell configurations apart: class names and the parameters that differ from their defaults."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from placed_parts import is_placed, write_placed
from tiny_parts import composed

from migm.config.building import conf_path, load
from migm.config.points import Chosen, point
from migm.config.roots import EvaluateConfig
from migm.runtime.errors import UserError
from migm.runtime.identity import identity


@dataclass(frozen=True)
class Inner:
    of: str = "features"


@dataclass(frozen=True)
class Part:
    temperature: float
    steps: Any = (0, 1)
    inner: Inner = field(default_factory=Inner)
    file: str | None = field(default=None, compare=False)

    rule: ClassVar[str] = "count"


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (Inner(), "Inner()"),
        (Part(2.5), "Part(temperature=2.5)"),
        (Part(2.5, (0, 1), Inner("features")), "Part(temperature=2.5)"),  # given, but as they are by default
        (Part(2.5, [0, 1.0]), "Part(temperature=2.5)"),  # a list in a config is a tuple by default
        (Part(2.5, [0, 3.0], Inner("residual")), "Part(temperature=2.5, steps=[0, 3], inner=Inner(of=residual))"),
        (Part(2.5, {"b": 1.0, "a": Inner("x")}), "Part(temperature=2.5, steps={a: Inner(of=x), b: 1})"),
        (Part(2.5, True), "Part(temperature=2.5, steps=True)"),
    ],
)
def test_it_is_the_name_and_what_differs_from_the_defaults(part, text):
    assert identity(part) == text


def test_3_and_3_0_are_the_same_and_3_1_is_not():
    assert identity(Part(3)) == identity(Part(3.0)) == "Part(temperature=3)"
    assert identity(Part(3.1)) == "Part(temperature=3.1)"


def test_files_and_what_is_left_out_do_not_count():
    assert identity(Part(1.0, file="a")) == identity(Part(1.0, file="b")) == "Part(temperature=1)"
    assert identity(Part(1.0, inner=Inner("x")), "temperature", "steps") == "Part(inner=Inner(of=x))"


@pytest.mark.parametrize("part", [object(), 3, "Inner()", None, Inner])
def test_what_is_no_dataclass_is_refused(part):
    with pytest.raises(UserError, match="must be a dataclass"):
        identity(part)


CONF = Path(conf_path())
FOREIGN = ("migm.", "0x", " object", ".safetensors", "outputs")  # import paths, addresses of objects, files


def made(*overrides: str) -> Chosen:
    return point(load(composed("evaluate", *overrides), EvaluateConfig))


@pytest.fixture(scope="module")
def accelerated(tmp_path_factory) -> Callable[[str], Chosen]:
    """Make an accelerator at N = 16 and B = 4, once; full steps that it reads are written."""

    @functools.cache
    def once(name: str) -> Chosen:
        folder = tmp_path_factory.mktemp("accelerated")
        if is_placed(name):
            write_placed(folder / "migm", name, 16, [4])
        steps = ["sampling.num_steps=16", "sampling.num_full_steps=4"]
        return made(f"accelerator={name}", *steps, f"paths.output_dir={folder}")

    return once


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "accelerator").glob("*.yaml")))
def test_no_import_path_is_in_the_identity_of_an_accelerator(name, accelerated):
    text = accelerated(name).accelerator.identity
    assert text
    assert not [part for part in FOREIGN if part in text]


@pytest.mark.parametrize(
    ("group", "name"),
    [(path.parent.name, path.stem) for path in sorted((CONF / "sampling").glob("*/*.yaml"))],
)
def test_no_import_path_is_in_the_identity_of_a_sampling_nor_n_nor_b(group, name):
    text = made(f"sampling/{group}={name}").sampling.identity
    assert text.startswith("Sampling(schedule=")
    assert not [part for part in (*FOREIGN, "num_steps", "num_full_steps") if part in text]


def parts_of(part: Any) -> Iterator[Any]:
    """A dataclass and all that it is made of."""
    yield part
    for each in fields(part):
        if is_dataclass(getattr(part, each.name)):
            yield from parts_of(getattr(part, each.name))


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "accelerator").glob("*.yaml")))
def test_parts_cannot_be_changed_once_they_are_made(name, accelerated):
    sampling, accelerator, *_ = accelerated(name)
    for part in (*parts_of(sampling), *parts_of(accelerator)):
        first, *_ = [each.name for each in fields(part)] or ["anything"]
        with pytest.raises(FrozenInstanceError):
            setattr(part, first, None)
