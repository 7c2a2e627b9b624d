"""The commands as a user starts them: the chain, doing nothing twice, clear refusals, and a kill.

One process is started where the process matters; refusals run in this one, since every start
costs seconds of imports.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_parts import ROOT, same_tensors

import migm.bench
import migm.benchmarks.compute
import migm.collect
import migm.evaluate
import migm.generate
import migm.report
import migm.train
from migm.benchmarks.steps import STEPS
from migm.evaluation.results import identity, read

MAINS = {
    "collect": migm.collect.main,
    "train": migm.train.main,
    "evaluate": migm.evaluate.main,
    "generate": migm.generate.main,
    "bench": migm.bench.main,
    "report": migm.report.main,
}
Outcome = tuple[int, str, str]  # exit code, standard output, standard error


def arguments(output: Path, assets: Path, *more: str) -> list[str]:
    shared = ["+experiment=tiny_shortcut", f"paths.output_dir={output}", f"paths.assets={assets}", "device=cpu"]
    return [*shared, "metric=[fd_cifarnet,class_agreement]", *more]


def process(command: str, args: list[str], **more: str) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200", **more}
    line = [sys.executable, "-m", f"migm.{command}", *args]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def finish(started: subprocess.Popen) -> Outcome:
    out, err = started.communicate(timeout=300)
    return started.returncode, out, err


def forked(command: str, args: list[str]) -> int:
    """Run a command in a copy of this process, which need not import anything -> its number."""
    copy = os.fork()
    if copy:
        return copy
    try:
        sys.argv = ["migm", *args]
        MAINS[command]()
    finally:
        os._exit(1)  # whoever kills it is told that it had ended


@pytest.fixture
def call(call_main) -> Callable[..., Outcome]:
    """Run a command inside this process."""
    return lambda command, args: call_main(MAINS[command], *args)


@pytest.fixture(scope="module")
def trained(assets, tmp_path_factory) -> tuple[Path, Outcome]:
    """The whole chain in one process, which names all that it imports: collect, train, evaluate, report."""
    output = tmp_path_factory.mktemp("outputs")
    args = arguments(output, assets, "trainer.max_steps=20")
    return output, finish(process("train", args, PYTHONPROFILEIMPORTTIME="1"))


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    """A copy of the trained run's outputs, to be broken."""
    shutil.copytree(trained[0], tmp_path / "outputs")
    return tmp_path / "outputs"


def files(folder: Path) -> dict[str, bytes]:
    """All files but Hydra's own logs."""
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and "hydra" not in p.relative_to(folder).parts]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


def test_one_command_collects_trains_evaluates_and_reports(trained):
    output, (code, out, err) = trained
    assert code == 0, err
    folder = output / "tiny_shortcut"
    assert (output / "trajectories" / "16x48_n6_features_bfloat16_seed0" / "manifest.jsonl").exists()
    for name in ("shortcut.safetensors", "checkpoints/resume.ckpt", "config.yaml", "report/index.html"):
        assert (folder / name).stat().st_size > 0, name
    records = read(folder / "results.jsonl")
    points = {(r["accelerator"], r["num_steps"], r["num_full_steps"]) for r in records}
    assert points == {("vanilla", 2, 2), ("vanilla", 6, 6), ("reuse", 6, 2), ("shortcut", 6, 2)}
    assert {r["metric"] for r in records} >= {"ffe", "fd_cifarnet_20", "class_agreement_20"}
    assert all(r["predictor"] for r in records if r["accelerator"] == "shortcut")
    assert "Traceback" not in err
    assert str(folder / "report" / "index.html") in out.replace("\n", "")


def test_a_command_checks_nothing_and_loads_no_checker(trained):
    _, (_, _, err) = trained
    imported = {line.rpartition("|")[2].strip() for line in err.splitlines() if line.startswith("import time:")}
    assert {"migm.training.run", "migm.evaluation.study", "migm.reporting.write", "migm.bases.base"} <= imported
    assert not [name for name in imported if "beartype" in name]


def _stored(output: Path) -> Path:
    return output / "trajectories" / "16x48_n6_features_bfloat16_seed0"


def test_a_second_start_changes_no_result(trained, assets, call):
    output, _ = trained
    before, weights = files(output), output / "tiny_shortcut" / "shortcut.safetensors"
    old = load_file(weights)
    code, out, err = call("train", arguments(output, assets, "trainer.max_steps=20"))
    assert code == 0, err
    assert "nothing to collect" in " ".join(out.split())  # the console wraps at the path
    after, new = files(output), load_file(weights)
    assert after.keys() == before.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    kept = [name for name in before if name.startswith("trajectories") or name.endswith("results.jsonl")]
    assert len(kept) == 5
    assert [name for name in kept if before[name] != after[name]] == []


def test_generate_writes_a_grid_of_the_right_size(copied, assets, call):
    path = copied / "grid.png"
    args = arguments(copied, assets, "labels=[1,2,3]", "seeds=[0,5]", f"output={path}")
    code, _, err = call("generate", args)
    assert code == 0, err
    with Image.open(path) as image:  # images of 16 pixels, three times as large, 3 pixels apart
        assert image.size == (2 * 51 + 3, 3 * 51 + 3)


def test_an_image_is_the_same_in_any_grid(copied, assets, call):
    crops = []
    for labels, seeds in (("[2,1]", "[0,5]"), ("[2,1]", "[7,3,5]"), ("[0,3,1]", "[5]")):
        args = arguments(copied, assets, f"labels={labels}", f"seeds={seeds}", f"output={copied / 'grid.png'}")
        assert call("generate", args)[0] == 0
        with Image.open(copied / "grid.png") as image:  # label 1, seed 5 is the last picture of each
            width, height = image.size
            crops.append(image.crop((width - 51, height - 51, width - 3, height - 3)).tobytes())
    assert crops[0] == crops[1] == crops[2]


def test_bench_appends_json_lines(copied, assets, call):
    for sizes in ("[1,4]", "[4]"):
        code, _, err = call("bench", arguments(copied, assets, f"batch_sizes={sizes}", "repeats=1"))
        assert code == 0, err
    rows = [json.loads(line) for line in (copied / "tiny_shortcut" / "bench.jsonl").read_text().splitlines()]
    runs = {"vanilla 2", "vanilla 6", "reuse 6,2", "shortcut 6,2"}
    kinds = {"run": runs, "step": set(STEPS), "memory": {"full", *runs}}
    for batch, times in ((1, 1), (4, 2)):
        for kind, parts in kinds.items():
            found = [row["part"] for row in rows if (row["batch_size"], row["kind"]) == (batch, kind)]
            assert sorted(found) == sorted(times * [*parts])
    assert all("device" in row for row in rows)
    assert all(row["of_floor"] > 0 for row in rows if row["kind"] in ("run", "step"))
    assert len(list((copied / "tiny_shortcut").glob("bench_*.png"))) == 1


def test_bench_halves_a_batch_that_does_not_fit():
    tried = []

    def measured(batch_size):
        tried.append(batch_size)
        if batch_size > 3:
            raise torch.OutOfMemoryError

    assert migm.benchmarks.compute.fitting(measured, 12) == 3
    assert tried == [12, 6, 3]


def test_evaluate_adds_only_new_points_and_report_shows_them(copied, assets, call):
    path = copied / "tiny_shortcut" / "results.jsonl"
    before = path.read_bytes()
    assert call("evaluate", arguments(copied, assets))[0] == 0
    assert path.read_bytes() == before
    one = ["~points.vanilla", "~points.shortcut", "points.reuse=[[6,3]]"]
    assert call("evaluate", arguments(copied, assets, *one))[0] == 0
    assert path.read_bytes().startswith(before)
    code, _, err = call("report", arguments(copied, assets, "baseline=vanilla 6"))
    assert code == 0, err
    table = (copied / "tiny_shortcut" / "report" / "table.md").read_text()
    assert "| reuse | 6 | 3 |" in table


def refused(outcome: Outcome, *words: str) -> None:
    """Exit code not 0, one `error:` line with the words, no traceback."""
    code, out, err = outcome
    assert code != 0
    lines = [line for line in (out + err).splitlines() if line.startswith("error:")]
    assert len(lines) == 1, err
    assert "Traceback" not in out + err
    for word in words:
        assert word in lines[0]


NO_POINTS = ["~points.vanilla", "~points.reuse", "~points.shortcut"]


@pytest.mark.parametrize(
    ("command", "overrides", "words"),
    [
        ("train", ["name=other", "points=null", "sampling.num_full_steps=7"], ["sampling.num_full_steps=7"]),
        ("generate", ["sampling.num_full_steps=0"], ["sampling.num_full_steps=0"]),
        ("evaluate", [*NO_POINTS, "sampling.num_full_steps=7"], ["sampling.num_full_steps=7"]),
        ("evaluate", ["points.reuse=[[6,7]]"], ["num_full_steps=7"]),
        ("evaluate", ["+points.shortcutt=[[6,2]]"], ["points", "shortcutt", "did you mean shortcut?"]),
        ("generate", ["sampling.num_steps=17"], ["sampling.num_steps=17", "16 tokens"]),
        ("bench", ["shortcut.bottleneck_ratio=5"], ["shortcut.bottleneck_ratio=5", "48"]),
        ("bench", ["shortcut.bottleneck_ratio=0"], ["shortcut.bottleneck_ratio=0"]),
        ("bench", ["shortcut.num_heads=7"], ["shortcut.num_heads=7", "24"]),
        ("train", ["+sede=1"], ["sede", "did you mean seed?"]),
        ("train", ["+shortcut.depht=1"], ["shortcut.depht", "did you mean depth?"]),
        ("train", ["seed=abc"], ["seed", "abc"]),
        ("train", ["name=other", "data.batch_size=100000"], ["data.batch_size=100000"]),
        ("train", ["data.num_val_images=12"], ["data.num_val_images=12"]),
        ("train", ["name=other", "collect=false", "data.folder=nowhere"], ["data.folder=nowhere", "migm.collect"]),
        ("evaluate", ["evalset.num_images=1"], ["evalset.num_images=1"]),
        ("generate", ["labels=[3,10]"], ["labels=[10"]),
        ("generate", ["labels=[]"], ["labels=[]"]),
        ("generate", ["base.dtype=float8"], ["base.dtype=float8"]),
        ("generate", ["base=cifar10", "base.weights=none.safetensors"], ["base.weights=none.safetensors"]),
        ("evaluate", ["evalset.reference=none.safetensors"], ["evalset.reference=none.safetensors"]),
        (
            "generate",
            ["accelerator.predictor.weights=none.safetensors"],
            ["accelerator.predictor.weights=none.safetensors"],
        ),
        ("generate", ["seed=1"], ["accelerator.predictor.weights", "shortcut.safetensors", "trained for base"]),
        ("collect", ["base.dtype=float32"], ["data.folder", "base="]),
        ("report", ["results=[none.jsonl]"], ["results=none.jsonl"]),
        ("report", ["baseline=vanilla 99"], ["baseline=vanilla 99", "vanilla 6"]),
    ],
)
def test_bad_input_is_refused_in_one_line_and_overwrites_nothing(copied, assets, call, command, overrides, words):
    before = files(copied)
    refused(call(command, arguments(copied, assets, *overrides)), *words)
    after = files(copied)
    # A refused training may have noted its config; nothing that took time to make may differ.
    differing = [name for name in before if after.get(name) != before[name]]
    assert [name for name in differing if name != "tiny_shortcut/config.yaml"] == []


@pytest.mark.parametrize("override", ["sede=1", "shortcut.depht=1", "base=nope", "sampling/draw=nope"])
def test_hydras_own_refusals_name_the_key_without_traceback(copied, assets, call, override):
    code, out, err = call("train", arguments(copied, assets, override))
    assert code != 0
    assert "Traceback" not in out + err
    assert override.split("=")[0].split(".")[-1] in out + err


def test_truncated_weights_are_refused_by_name(copied, assets, call):
    path = copied / "tiny_shortcut" / "shortcut.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(call("generate", arguments(copied, assets)), "accelerator.predictor.weights", "shortcut.safetensors")
    assert not (copied / "tiny_shortcut" / "images.png").exists()


def test_a_damaged_shard_is_refused_by_name_before_training(copied, assets, call):
    shard = _stored(copied) / "000001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    shutil.rmtree(copied / "tiny_shortcut")
    refused(call("train", arguments(copied, assets, "trainer.max_steps=20")), "000001.safetensors")
    assert not (copied / "tiny_shortcut" / "shortcut.safetensors").exists()


def test_a_damaged_line_of_results_is_named_by_number_and_not_added_to(copied, assets, call):
    path = copied / "tiny_shortcut" / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[1] = "{broken\n"
    path.write_text("".join(lines))
    refused(call("evaluate", arguments(copied, assets)), "results.jsonl", "line 2")
    code, out, _ = call("report", arguments(copied, assets))
    assert code == 0
    assert "results.jsonl, line 2: not JSON; not counted" in " ".join(out.split())
    assert path.read_text() == "".join(lines)


@pytest.mark.slow
def test_a_refusal_of_a_real_process_is_one_line_too(assets, tmp_path):
    refused(finish(process("generate", arguments(tmp_path, assets, "labels=[]"))), "labels=[]")


@pytest.mark.slow
def test_two_processes_train_one_shortcut(trained, assets, tmp_path):
    several = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.max_steps=20", "data.batch_size=4"]
    args = arguments(tmp_path, assets, *several, f"data.folder={_stored(trained[0])}")
    code, _, err = finish(process("train", args))
    assert code == 0, err
    folder = tmp_path / "tiny_shortcut"
    assert (folder / "shortcut.safetensors").exists()
    records = read(folder / "results.jsonl")
    assert len({identity(record) for record in records}) == len(records)  # evaluated by one of them


@pytest.mark.parametrize("part", ["while training", pytest.param("while evaluating", marks=pytest.mark.slow)])
def test_a_killed_run_started_again_ends_as_if_never_killed(trained, assets, tmp_path, call, part):
    steps = ["trainer.max_steps=100", "callbacks.checkpoint.every_n_train_steps=20"]
    args = arguments(tmp_path / "killed", assets, *steps, f"data.folder={_stored(trained[0])}")
    folder = tmp_path / "killed" / "tiny_shortcut"
    awaited = folder / ("checkpoints/resume.ckpt" if part == "while training" else "results.jsonl")
    process, deadline = forked("train", args), time.monotonic() + 120
    while not awaited.exists() and time.monotonic() < deadline and os.waitpid(process, os.WNOHANG) == (0, 0):
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    assert awaited.exists()
    assert not (folder / "report").exists()
    code, _, err = call("train", args)
    assert code == 0, err
    whole = arguments(tmp_path / "whole", assets, *steps, "evaluate=false", f"data.folder={_stored(trained[0])}")
    code, _, err = call("train", whole)
    assert code == 0, err
    assert same_tensors(folder / "shortcut.safetensors", tmp_path / "whole" / "tiny_shortcut" / "shortcut.safetensors")
    assert len({r["metric"] for r in read(folder / "results.jsonl")}) == 6
    assert (folder / "report" / "index.html").exists()
