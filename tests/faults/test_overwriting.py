"""Commands and jobs of a sweep that would replace each other's files: refused before anything is made, or in turn."""

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from test_commands import refused
from test_generate import generate, shared  # noqa: F401 (fixtures)
from tiny_parts import collected, composed, naming, tiny

import migm.generate
import migm.train
from migm.reporting.sweep import OWN, refuse_shared
from migm.runtime.errors import UserError
from migm.runtime.jsonl import append_line, read_lines
from migm.runtime.writing import refuse_unwritable, writing

TINY = ["+experiment=tiny_shortcut", "device=cpu", "labels=[3]", "seeds=[0]"]


def test_jobs_of_a_sweep_with_one_grid_are_refused_and_the_example_of_the_refusal_works(
    tmp_path, call_main, monkeypatch
):
    outputs: list[str] = []
    monkeypatch.setattr(migm.generate, "run", lambda config: outputs.append(Path(config.output).name))
    swept = ["-m", *TINY, f"paths.output_dir={tmp_path}", "accelerator=vanilla,reuse"]
    outcome = call_main(migm.generate.main, *swept)
    refused(outcome, f"output={tmp_path}/tiny_shortcut/images.png", "2 of 2 jobs")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    example = re.search("'(output=.*)'", outcome[2])
    assert example
    code, _, err = call_main(migm.generate.main, *swept, example[1])
    assert code == 0, err
    assert outputs == ["images_vanilla.png", "images_reuse.png"]


def jobs(*changes: dict[str, object]) -> list:
    """What a sweep's trials look like to the guard."""
    plain = {"paths": {"output_dir": "o"}, "name": "n", "folder": None, "output": "${paths.output_dir}/${name}/x.png"}
    hydra = {"runtime": {"choices": {"accelerator": "vanilla"}}}
    return [OmegaConf.create({**plain, "hydra": hydra, **change}) for change in changes]


@pytest.mark.parametrize(
    ("command", "changes", "words"),
    [
        ("train", [{"seed": 0}, {"seed": 1}], ["name=n", "folder of several trials", "name=n_${seed}"]),
        ("calibrate", [{"seed": 0}, {"seed": 1}], ["output=o/n/x.png", "2 of 2", "output=o/n/x_${seed}.png"]),
        ("generate", [{"output": "a"}, {"output": "b"}, {"output": "./a"}], ["output=a", "2 of 3"]),
        (
            "generate",
            [{"output": "a", "folder": "f"}, {"output": "b", "folder": "f"}],
            ["folder=f", "2 of 2", "folder=f_${seed}"],
        ),
        ("report", [{"folder": "f"}, {"folder": "f"}], ["folder=f", "2 of 2"]),
        ("train", [{"name": "a"}, {"name": "b"}], []),
        ("train", [{"paths": {"output_dir": "a"}}, {"paths": {"output_dir": "b"}}], []),
        ("generate", [{"name": "a"}, {"name": "b"}], []),
        ("generate", [{"output": "${hydra.job.num}.png"}, {"output": "${hydra.job.num}.png"}], []),
        ("evaluate", [{}, {}], []),
        ("plan", [{}, {}], []),
    ],
)
def test_every_command_that_writes_what_is_its_own_is_guarded(command, changes, words):
    if not words:
        refuse_shared(command, jobs(*changes), ["seed"])
        return
    with pytest.raises(UserError, match=naming(*words)):
        refuse_shared(command, jobs(*changes), ["seed"])


def test_the_guard_knows_the_keys_of_its_commands():
    for command, keys in OWN.items():
        cfg = composed(command)
        for key in keys:
            group, _, last = key.rpartition(".")
            node = cfg[group] if group else cfg
            assert last in node, f"{command} {key}"


@pytest.mark.parametrize("key", ["output", "folder"])
def test_what_another_command_is_writing_is_refused(generate, tmp_path, key, monkeypatch):  # noqa: F811
    place = tmp_path / "kept" / "x.png"
    monkeypatch.setattr("migm.sampling.generation.build", lambda *_: pytest.fail("something was built"))
    with (
        writing(place, f"{key}={place}", folder=key == "folder"),
        pytest.raises(UserError, match=naming(f"{key}={place}", "being written by another command")),
    ):
        generate({key: str(place), "labels": [1], "seeds": [0]})
    assert sorted(tmp_path.iterdir()) == []


def test_two_trainings_of_one_name_are_refused(tmp_path, call_main, monkeypatch):
    monkeypatch.setattr("migm.train.build", lambda *_: pytest.fail("something was built"))
    with writing(tmp_path / "tiny_shortcut", "name", folder=True):
        outcome = call_main(migm.train.main, "+experiment=tiny_shortcut", f"paths.output_dir={tmp_path}", "device=cpu")
    refused(outcome, "name=tiny_shortcut", "being written by another command")


def test_a_killed_command_leaves_its_place_free(tmp_path):
    code = "import sys, time, filelock; own = filelock.FileLock(sys.argv[1]); own.acquire(); print(); time.sleep(99)"
    line = [sys.executable, "-u", "-c", code, tmp_path / ".x.png.lock"]
    with subprocess.Popen(line, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        with pytest.raises(UserError, match="being written"), writing(tmp_path / "x.png", "output=x.png"):
            pass
        other.kill()
        other.wait()
    with writing(tmp_path / "x.png", "output=x.png"):
        assert (tmp_path / ".x.png.lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_what_was_made_to_try_goes_again_unless_something_was_written(tmp_path):
    with writing(tmp_path / "a" / "b", "folder=b", folder=True):
        pass
    refuse_unwritable(tmp_path / "a" / "b", "folder=b", folder=True)
    assert list(tmp_path.iterdir()) == []
    with writing(tmp_path / "a" / "x.png", "output=x.png"):
        (tmp_path / "a" / "x.png").write_text("")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.png"]


def test_of_two_commands_that_want_one_store_the_second_waits_and_finds_it_whole(tmp_path, capfd):
    config = tiny(tmp_path)
    free = threading.Event()

    def other() -> None:
        with writing(config.data["folder"], "data.folder", folder=True):
            held.set()
            free.wait()

    held = threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    threading.Timer(1.0, free.set).start()
    assert len(collected(config)) == 12
    thread.join()
    assert "being written by another command: waiting for it" in capfd.readouterr().out


def test_lines_of_several_writers_are_all_kept(tmp_path):
    path = tmp_path / "results.jsonl"

    def add(own: int) -> None:
        for number in range(20):
            append_line(path, {"own": own, "number": number})

    threads = [threading.Thread(target=add, args=[own]) for own in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_lines(path)) == 60
    assert [each.name for each in tmp_path.iterdir()] == ["results.jsonl"]


def test_processes_of_one_run_are_no_other_command(tmp_path, monkeypatch):
    with writing(tmp_path / "x", "name=x", folder=True):
        for name, value in (("LOCAL_RANK", "1"), ("NODE_RANK", "1")):
            with monkeypatch.context() as patched:
                patched.setenv(name, value)
                with writing(tmp_path / "x", "name=x", folder=True) as first:
                    assert not first
