"""Laws about the text of the repository itself."""

import ast
import re
import shutil
import subprocess
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_parts import ROOT

from migm.__main__ import RENAMED

SOURCES = sorted((ROOT / "migm").rglob("*.py"))
TEXT = {".py", ".yaml", ".yml", ".md", ".toml", ".txt", ".sh", ".jsonl", ".json", ".cfg", ".csv", ".html", ""}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


every_source = pytest.mark.parametrize("path", SOURCES, ids=name_of)


@every_source
def test_files_have_at_most_300_lines_and_functions_60(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
    functions = [node for node in ast.walk(parsed(path)) if isinstance(node, FUNCTIONS)]
    assert [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > 60] == []


@every_source
def test_pickles_are_loaded_as_weights_only(path):
    calls = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
    loads = [call for call in calls if ast.unparse(call.func) in ("torch.load", "load_from_checkpoint")]
    for call in loads:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("weights_only") == "True", f"{name_of(path)}:{call.lineno}"
    resumed = [call for call in calls if any(keyword.arg == "ckpt_path" for keyword in call.keywords)]
    for call in resumed:
        assert "weights_only" in {keyword.arg for keyword in call.keywords}, f"{name_of(path)}:{call.lineno}"


def undocumented(path: Path) -> Iterator[str]:
    """Public definitions at the top of a module without docstring, and the module itself.

    Classes whose body is a few fields or one short method speak for themselves, as do members
    of Protocols and what overrides a documented contract (methods); functions nested in others
    are private.
    """
    tree = parsed(path)
    if not ast.get_docstring(tree) and tree.body:
        yield "module"
    for node in tree.body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_"):
            short = (node.end_lineno or 0) - node.lineno < 12
            protocol = isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases)
            if not ast.get_docstring(node) and not short and not protocol:
                yield node.name


@every_source
def test_modules_and_public_definitions_are_documented(path):
    assert list(undocumented(path)) == []


def repository_files() -> list[Path]:
    """What Git tracks or would track."""
    line = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no Git repository here")
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def test_no_file_holds_a_path_of_one_machine():
    roots = "|".join(["wo" + "rk", "ho" + "me", "ro" + "ot", "Us" + "ers", "mn" + "t"])
    pattern = re.compile(rf"(?<![\w.:/}}$-])/(?:{roots})/[\w.-]")
    found = []
    for path in repository_files():
        if path.suffix in TEXT and path.stat().st_size < 5_000_000:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            found += [f"{name_of(path)}:{i}" for i, line in enumerate(lines, 1) if pattern.search(line)]
    assert found == []


def test_test_files_have_unique_names_and_no_packages():
    files = list((ROOT / "tests").rglob("*.py"))
    names = [path.name for path in files if path.name != "conftest.py"]
    assert sorted(set(names)) == sorted(names)
    assert "__init__.py" not in names


def test_the_library_below_the_commands_never_sees_a_dictconfig():
    """Commands and the Python door get one, `config/` makes plain values of it, Hydra calls the sweeps with one."""
    package = ROOT / "migm"
    allowed = {*package.glob("*.py"), *(package / "config").rglob("*.py")}
    allowed |= {package / "reporting" / "sweep.py", package / "door" / "configs.py"}
    for path in set(SOURCES) - allowed:
        assert "omegaconf" not in path.read_text(encoding="utf-8"), name_of(path)
        assert "import hydra" not in path.read_text(encoding="utf-8"), name_of(path)


def test_the_root_holds_commands_alone_and_they_are_short():
    """`lint-imports` holds that nobody imports them (`[tool.importlinter]`)."""
    for path in sorted((ROOT / "migm").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 70, path.name
        if path.name not in ("__init__.py", "__main__.py") and path.stem not in RENAMED:
            assert "\n@command\ndef main(" in text, path.name
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    commands = {path.stem for path in (ROOT / "migm").glob("*.py")} - {"__init__", "__main__", *RENAMED}
    assert commands in [set(layer.split(" | ")) for layer in layers["contracts"][0]["layers"]]


def test_components_are_chosen_by_config_alone():
    named = [path for path in SOURCES if "_target_" in path.read_text(encoding="utf-8")]
    assert {path.parent.name for path in named} == {"config"}


def test_no_two_public_types_have_one_name():
    places: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name_of(path))
    doubled = {name: files for name, files in places.items() if len(files) > 1}
    # That of the door is a kind of the other.
    assert doubled == {"Sampler": ["migm/door/sampler.py", "migm/sampling/sampler.py"]}


def test_the_wheel_holds_code_configs_and_assets(tmp_path):
    """Built in a copy with stand-ins for assets, so that nothing large is packed and nothing is left behind."""
    builders = pytest.importorskip("hatchling.builders.wheel")
    copy = tmp_path / "copy"
    for folder in ("migm", "conf"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    (copy / "migm" / "assets").mkdir(exist_ok=True)
    (copy / "migm" / "assets" / "base.safetensors").write_bytes(b"stand-in")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        (copy / name).write_text((ROOT / name).read_text(encoding="utf-8") if (ROOT / name).exists() else "")
    (wheel,) = builders.WheelBuilder(str(copy)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    configs = {f"migm/conf/{path.relative_to(ROOT / 'conf').as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert configs <= held
    assert {name_of(path) for path in SOURCES} <= held
    assert {"migm/assets/base.safetensors", "migm/py.typed"} <= held
    fronts = {"front.json", "cifar10_deep/front.json", "dimoo_tiny/front.json", "fronts/dimoo.json"}
    assert {f"migm/assets/{name}" for name in fronts} <= held
    assert {"migm/human_eval/vote.html", *(f"migm/reporting/page.{kind}" for kind in ("html", "css", "js"))} <= held
    assert not [name for name in held if name.startswith(("tests", "experiments", "conf"))]


def test_the_version_is_said_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" in project["dynamic"]
    assert "version" not in project
