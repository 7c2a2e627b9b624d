"""Results say which code made them, and never need git to be there."""

import json
import shutil
import subprocess

import pytest
import torch

import migm
from migm.runtime import provenance

CPU = torch.device("cpu")


def git(folder, *task: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    done = subprocess.run(["git", *identity, *task], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def asked_anew():
    provenance.environment.cache_clear()
    yield
    provenance.environment.cache_clear()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the file that asks, at `<repository>/<place>`; the repository tracks it if `tracked`."""

    def make(place: str, tracked: bool):
        folder = tmp_path / "repository" / place
        folder.mkdir(parents=True)
        file = folder / "provenance.py"
        shutil.copy(provenance.__file__, file)
        top = tmp_path / "repository"
        git(top, "init", "--quiet")
        (top / ".gitignore").write_text("" if tracked else ".venv\n")
        git(top, "add", "--all")
        git(top, "commit", "--quiet", "--message=first")
        monkeypatch.setattr(provenance, "__file__", str(file))
        monkeypatch.setattr(provenance, "_installed_commit", lambda: "", raising=False)
        return top, file

    return make


def test_a_checkout_records_its_commit_and_whether_it_was_changed(package):
    top, file = package("migm", tracked=True)
    commit = git(top, "rev-parse", "--short", "HEAD")
    assert provenance.environment(CPU)["commit"] == commit
    provenance.environment.cache_clear()
    file.write_text("changed")
    assert provenance.environment(CPU)["commit"] == f"{commit}-dirty"


def test_the_repository_around_an_installed_package_is_not_ours(package):
    package(".venv/lib/python3.11/site-packages/migm", tracked=False)
    assert provenance.environment(CPU)["commit"] == "unknown"


def test_a_repository_named_by_the_environment_is_not_asked(package, tmp_path, monkeypatch):
    top, _ = package("migm", tracked=True)
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    git(other, "commit", "--quiet", "--allow-empty", "--message=theirs")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    found = provenance.environment(CPU)["commit"]
    monkeypatch.undo()
    assert found == git(top, "rev-parse", "--short", "HEAD")


def test_without_git_the_rest_is_recorded(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = provenance.environment(CPU)
    assert found["commit"]
    assert found["migm"] == migm.__version__
    assert found["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("record", "commit"),
    [
        ({"url": "u", "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef"}}, "0123456"),
        ({"url": "file:///x", "dir_info": {"editable": True}}, ""),
        (None, ""),
    ],
)
def test_what_pip_installed_out_of_a_repository_keeps_its_commit(monkeypatch, record, commit):
    class Installed:
        def read_text(self, name: str) -> str | None:
            return json.dumps(record) if record and name == "direct_url.json" else None

    monkeypatch.setattr(provenance, "distribution", lambda name: Installed())
    assert provenance._installed_commit() == commit
