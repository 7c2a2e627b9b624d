"""From a wheel: `migm <command>`, hints that fit it, nothing written into the installed package."""

import ast
import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from functools import partial
from pathlib import Path

import pytest
from hydra._internal.hydra import Hydra
from test_commands import arguments, refused
from tiny_parts import ROOT, naming, smaller_block

import migm.__main__
import migm.runtime.extras
import migm.train
from migm.__main__ import RENAMED, commands, main
from migm.config.building import asset_path
from migm.pretrain import refuse_package
from migm.runtime.errors import UserError
from migm.runtime.extras import EXTRAS, install, optional

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCES = sorted((ROOT / "migm").rglob("*.py"))


@pytest.fixture
def wheel(monkeypatch) -> None:
    monkeypatch.setattr("migm.runtime.extras.in_checkout", lambda: False)
    monkeypatch.setattr("migm.pretrain.in_checkout", lambda: False)


def test_the_commands_are_listed_without_importing_what_they_need():
    code = (
        "import sys; from migm.__main__ import main; main(); assert not {'torch', 'hydra', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listed = dict(line.strip().split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith("  "))
    assert listed == commands()
    mains = {path.stem for path in (ROOT / "conf").glob("*.yaml")} - {"common"}
    assert set(listed) == mains | {"needs", "install_scorers"}
    assert all(len(told) > 20 for told in listed.values())


def test_a_command_is_run_as_python_m_runs_it(monkeypatch):
    started = []
    monkeypatch.setattr("runpy.run_module", lambda *given, **more: started.append((given, more, sys.argv)))
    monkeypatch.setattr("migm.__main__.wait_briefly", lambda: started.append("before torch is loaded"))
    monkeypatch.setattr(sys, "argv", ["migm", "train", "seed=1", "--help"])
    main()
    shown = {"run_name": "__main__", "alter_sys": True}  # Lightning starts further processes by the name of __main__
    assert started == ["before torch is loaded", (("migm.train",), shown, ["migm", "seed=1", "--help"])]
    assert os.getcwd() in sys.path


@pytest.mark.parametrize("started", ["migm", "python -m"])
@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_name_runs_the_command_and_says_the_new_one(call_main, monkeypatch, tmp_path, started, old, new):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the command adds the working directory
    # Hydra takes seconds to list all groups, whatever the name; a wheel's help is looked at whole (slow).
    monkeypatch.setattr(Hydra, "list_all_config_groups", lambda *_, **__: [])
    by_module = partial(runpy.run_module, f"migm.{old}", run_name="__main__", alter_sys=True)
    code, out, err = call_main(main, old, "--help") if started == "migm" else call_main(by_module, "--help")
    assert code == 0, err
    assert err == f"migm.{old} is called migm.{new} now; the old name goes with the next version\n"
    assert new in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("word", "words"), [("trian", ["trian", "did you mean train?"]), ("x", ["evaluate"])])
def test_an_unknown_command_is_refused_with_the_nearest(monkeypatch, capsys, word, words):
    monkeypatch.setattr(sys, "argv", ["migm", word])
    with pytest.raises(SystemExit) as stop:
        main()
    refused((int(stop.value.code or 0), *capsys.readouterr()), *words)


def test_the_version_and_the_script(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["migm", "--version"])
    main()
    assert re.fullmatch(r"migm \d+\.\d+\.\d+\n", capsys.readouterr().out)
    assert PROJECT["scripts"] == {"migm": "migm.__main__:main"}


def test_hints_are_those_of_a_checkout_or_of_a_wheel(monkeypatch, wheel):
    assert install("wandb") == 'pip install "migm[wandb]"'
    monkeypatch.undo()
    assert install("wandb") == 'pip install -e ".[wandb]"'


def plain(name: str) -> str:
    """A distribution's name as it may be written in a requirement, without the rest of that."""
    return re.split(r"[\s\[<>=!~,;]", name, maxsplit=1)[0].lower().replace("_", "-")


def test_every_hint_names_the_extra_that_holds_the_missing_module():
    known = importlib.metadata.packages_distributions()
    for module, extra in EXTRAS.items():
        if module in known:  # it is installed here
            assert set(map(plain, PROJECT["optional-dependencies"][extra])) & set(map(plain, known[module])), module


def test_hints_are_made_in_one_place_and_optional_modules_are_known():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if path.name != "extras.py":
            assert not re.search(r"pip install (-e|['\"]?migm)", text), path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("optional", "refuse_missing"):
                given = [each.value for each in node.args if isinstance(each, ast.Constant)]
                modules = given[:1] if ast.unparse(node.func) == "optional" else given
                assert all(module.partition(".")[0] in EXTRAS for module in modules), path


def test_a_missing_module_is_named_with_its_extra(monkeypatch, wheel):
    for module in ("sklearn", "sklearn.manifold"):  # another test may have loaded them
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=naming("analysis=x", "sklearn", 'pip install "migm[analyse]"')):
        optional("sklearn.manifold", "analysis=x")


@pytest.mark.parametrize("module", ["wandb", "wandb_workspaces"])
def test_what_wandb_needs_is_missed_before_a_training(call_main, monkeypatch, tmp_path, module):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("migm.train.build", lambda *_: pytest.fail("something was built"))
    asked = ["+experiment=tiny_shortcut", "logger=wandb", f"paths.output_dir={tmp_path}"]
    refused(call_main(migm.train.main, *asked), "logger=wandb", module, 'pip install -e ".[wandb]"')
    assert list(tmp_path.iterdir()) == []


def test_pretrain_never_writes_into_an_installed_package(wheel, tmp_path, monkeypatch):
    for folder in (Path(asset_path()), Path(asset_path()) / "more"):
        with pytest.raises(
            UserError, match=naming(f"paths.assets={folder}", "installed package", "paths.assets=<folder>")
        ):
            refuse_package(folder)
    refuse_package(tmp_path)
    monkeypatch.undo()
    refuse_package(Path(asset_path()))


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A fresh environment, outside any repository, with our wheel and a way to this one's packages -> its folder."""
    builders = pytest.importorskip("hatchling.builders.wheel")
    place = tmp_path_factory.mktemp("installed")
    copy, environment = place / "copy", place / "environment"
    for folder in ("migm", "conf"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    (made,) = builders.WheelBuilder(str(copy)).build(directory=str(place), versions=["standard"])
    shutil.rmtree(copy)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", made], check=True)
    packages = next(environment.glob("lib/python*/site-packages"))
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment


def written(environment: Path) -> set[str]:
    package = next(environment.glob("lib/python*/site-packages/migm"))
    return {str(path) for path in package.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.slow
def test_a_wheel_generates_trains_evaluates_and_reports_outside_any_repository(installed, assets, tmp_path):
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PATH": f"{installed / 'bin'}:{os.environ['PATH']}"}

    def run(*line: str) -> tuple[int, str, str]:
        done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    def migm(command: str, *more: str) -> str:
        code, out, err = run("migm", command, *more)
        assert code == 0, err
        assert "Traceback" not in err
        return out

    before = written(installed)
    told = "import migm.runtime.extras as e; print(e.__file__, e.install('wandb'))"
    code, out, err = run("python", "-c", told)
    assert code == 0, err
    assert str(installed) in out
    assert 'pip install "migm[wandb]"' in out
    assert "collect what is missing" in migm("--help")
    assert "num_steps" in migm("train", "--help")
    tiny = arguments(Path("outputs"), assets)
    assert "vanilla 6" in migm("plan", *tiny)
    assert "prompts.txt" in migm("needs", *tiny, "evalset=prompts")
    assert list(tmp_path.iterdir()) == []
    assert "shortcut in outputs" in migm("train", *tiny, "trainer.max_steps=4", "evaluate=false")
    assert "1 images" in migm("generate", *tiny, "labels=[1]", "seeds=[0]")
    assert "results in outputs" in migm("evaluate", *tiny, "points={vanilla: [2]}", "cost=false")
    assert "report in outputs" in migm("report", *tiny)
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {"tiny_shortcut", "trajectories"}
    refused(run("migm", "pretrain"), "paths.assets", "installed package")
    (tmp_path / "block.py").write_text(smaller_block())
    env["MIGM_ASSETS"] = str(ROOT / "migm" / "assets")  # the wheel of this test was built without them
    code, out, err = run("python", "block.py")
    assert code == 0, err
    assert "| vanilla | 16 | 16 |" in out
    assert (tmp_path / "grid.png").exists()
    two = ["trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=4", "evaluate=false", "name=two"]
    assert "shortcut in outputs" in migm("train", *tiny, "trainer.max_steps=4", *two)
    assert written(installed) == before
