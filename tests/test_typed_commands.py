"""The commands of README and docs, typed as they stand, in order, in a fresh copy of the repository.

What is not listed below runs as it is shown and has to succeed, so a command is either run or listed with a reason.
Later commands use what earlier ones left: `make run` trains the shortcut that README then evaluates.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest
from PIL import Image
from test_documentation import COMMANDS, ROOT, check, name_of

LIMIT = 300  # seconds that one command may take
FEW = "evalset.num_images=20 evalset.batch_size=20"
TRAINED = "data.num_images=24 data.num_val_images=8 data.batch_size=8 trainer.max_steps=4"
SMALL = f"{TRAINED} {FEW} latency=[batch4_amortised] 'points={{vanilla: [2], shortcut: [[4,2]]}}'"
SHORT = "batch_sizes=[1] repeats=1 max_seconds=10"

# Not run: pattern of the command, and why. Each of these is composed by test_documentation.py all the same.
NOT_RUN = {
    r"pip install|install_scorers": "installs packages",
    r"python -m pytest": "tests of make test",
    r"s3://|wandb sync": "needs a server",
    r"experiment=(?!cifar10|tiny)\w+_shortcut.*base\.random_weights=true": "a GPU; small in tests/test_*_chain.py",
    r"experiment=(?!cifar10|tiny)\w+_shortcut": "published weights",
    r"base=dimo_(meissonic|maskgit)": "published weights",
    r"trainer\.devices=4": "four GPUs or a cluster; tests/test_several_processes.py has two processes",
    r"experiment=cifar10_deep_shortcut": "a GPU and 18 GB of disk",
    r"images=filled_in": "the photos of ImageNet",
    r"MIGM_CIFAR10=": "the photos of CIFAR-10, and hours",
    r"migm\.tune ": "20 minutes or more; small in tests/tuning",
    r"votes=": "votes of people; tests/human_eval",
    r"results=\[a\.jsonl,b\.jsonl\]": "names any results; tests/reporting",
    r"sweep=(ablation_(rd|objective|terms|storage|length|networks)|pareto)": "hours; tests/test_sweeps.py",
}
# Run with appended overrides: pattern, overrides, and why.
SMALLER = {
    r"migm\.train -m .*sweep=ablation_attention": (f"{SMALL} seed=0 cost=false", "an hour"),
    r"migm\.evaluate -m .*sweep=n_by_b": (f"{FEW} cost=false sampling.num_steps=12", "half an hour"),
    r"(migm\.|migm )train .*experiment=(cifar10_shortcut|cifar10_quick|dimoo_tiny)": (SMALL, "10 minutes or more"),
    r"(migm\.|migm )train .*experiment=tiny_shortcut": ("trainer.max_steps=20", "a minute"),
    r"migm\.evaluate \+experiment=cifar10_deep": (
        f"{FEW} metric=[fd_cifarnet] cost=false 'points={{vanilla: [2], shortcut_bundled: [[4,1]]}}'",
        "hours",
    ),
    r"migm\.evaluate \+experiment=cifar10_shortcut": (
        f"{FEW} cost=false",
        "minutes of 1,000 images a point",
    ),
    r"(migm\.|migm )generate \+experiment=cifar10_deep$": ("labels=[1] seeds=[0]", "80 images take minutes"),
    r"migm\.generate \+experiment=cifar10_deep accelerator=taylorseer": ("labels=[1] seeds=[0]", "likewise"),
    r"migm\.analyse \+experiment=cifar10_deep": (
        "analyses.fidelity.num_images=1 'points={shortcut_bundled: [[32,4]]}'",
        "12 points of 32 images take an hour",
    ),
    r"migm\.analyse \+experiment=cifar10_shortcut": ("analyses.fidelity.num_images=8", "fewer are stored above"),
    r"migm\.ablations ": (
        "reference=ablation_attention/cross_attention_True_time_True",
        "the usual reference is of a sweep that is not run",
    ),
    r"migm\.bench .*part=train": (f"{TRAINED} repeats=1 max_seconds=10", "minutes"),
    r"migm\.bench .*part=loading": (
        "loading.num_images=32 loading.tar_images=8 loading.batches=2 loading.online_images=2 max_seconds=10",
        "minutes",
    ),
    r"migm\.bench ": (SHORT, "minutes"),
}


def recipes(target):
    """The commands of a target of the Makefile, as one would type them; none without make."""
    if not shutil.which("make"):
        return []
    told = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [shlex.split(line) for line in told.splitlines() if line.startswith(".venv/bin/python -m migm.")]
    assert lines, target
    return [["python", *words[1:]] for words in lines]


def typed():
    """README's commands and those of docs, once each -> (page, words)."""
    seen = set()
    for page, words in COMMANDS:
        if page.parent != ROOT / "docs" and page != ROOT / "README.md":
            continue
        parts = recipes(words[1]) if words[0] == "make" and not reason_of(shlex.join(words)) else [words]
        for part in parts:
            if tuple(part) not in seen:
                seen.add(tuple(part))
                yield page, part


def reason_of(line):
    """Why a command is not run, or None."""
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, line)), None)


def smaller(line):
    """What is appended to a command."""
    return next((shlex.split(more) for pattern, (more, _) in SMALLER.items() if re.search(pattern, line)), [])


TYPED = list(typed())


def test_every_entry_is_of_a_command_that_is_shown():
    lines = [shlex.join(words) for _, words in TYPED]
    of_none = [pattern for pattern in NOT_RUN if not any(re.search(pattern, line) for line in lines)]
    run = [line for line in lines if not reason_of(line)]
    of_none += [
        p for p in SMALLER if not any(next((q for q in SMALLER if re.search(q, line)), "") == p for line in run)
    ]
    assert of_none == []
    assert len(run) >= 25


@pytest.mark.parametrize(("page", "words"), TYPED, ids=[shlex.join(words) for _, words in TYPED])
def test_what_is_appended_is_accepted(page, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    more = smaller(shlex.join(words)) if not reason_of(shlex.join(words)) else []
    if more:
        check([*words, *more], monkeypatch)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone of the repository with what the working tree changed, and the photo and mask that docs name."""
    place = tmp_path_factory.mktemp("typed")
    copy, programs = place / "migm", place / "bin"
    subprocess.run(["git", "clone", "--quiet", ROOT, copy], check=True)
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in filter(None, subprocess.check_output(listed, cwd=ROOT, text=True).split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, copy / name)
        else:
            (copy / name).unlink(missing_ok=True)
    Image.new("RGB", (32, 32), (90, 120, 200)).save(copy / "ship.png")
    Image.linear_gradient("L").resize((32, 32)).point(lambda grey: 255 * (grey < 128)).save(copy / "sky.png")
    programs.mkdir()
    for name, module in {"python": "", "migm": "-m migm"}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        (programs / name).chmod(0o755)
    return copy


def environment(clone):
    """What a fresh shell has: no GPU, no accounts, no network for weights."""
    left = {key: value for key, value in os.environ.items() if not re.match(r"WANDB_|HF_|MIGM_|AWS_", key)}
    path = os.pathsep.join([str(clone.parent / "bin"), os.path.dirname(sys.executable), os.environ["PATH"]])
    return left | {
        "PATH": path,
        "PYTHONPATH": str(clone),
        "CUDA_VISIBLE_DEVICES": "",
        "MIGM_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "words"), TYPED, ids=[f"{name_of(page)}-{shlex.join(words)}" for page, words in TYPED]
)
def test_every_command_runs_as_it_is_typed(page, words, clone):
    line = shlex.join(words)
    if reason := reason_of(line):
        pytest.skip(reason)
    words = ["env", *words, *smaller(line)]
    start = time.perf_counter()
    done = subprocess.run(
        words, cwd=clone, env=environment(clone), capture_output=True, text=True, timeout=LIMIT, check=False
    )
    with (clone.parent / "transcript.txt").open("a") as transcript:  # what a reader sees, to be looked at
        transcript.write(f"$ {shlex.join(words[1:])}\n{done.stdout}{done.stderr}")
        transcript.write(f"[{done.returncode}, {time.perf_counter() - start:.0f} s]\n\n")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
