"""Run as a process of its own: kills commands at random moments and starts them again, until killed often enough.

Imports and Hydra take seconds, so both are done once, and every start of a command is a fork that calls its `main`.
A life begins with an empty folder and ends when the command does; moments are drawn over the time that it takes
without a kill.
"""

import importlib
import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from migm.config.building import conf_path, load
from migm.config.roots import CollectConfig, EvaluateConfig, TrainConfig

ROOTS: dict[str, Any] = {"collect": CollectConfig, "train": TrainConfig, "evaluate": EvaluateConfig}
# Where the work of each command begins: before it lie only config and building.
WORK = {
    "collect": ("migm.trajectories.collect", "record"),
    "train": ("migm.training.run", "Training._fit"),
    "evaluate": ("migm.evaluation.study", "Study.run"),
}


def announced(function: Callable[..., Any], pipe: int) -> Callable[..., Any]:
    """The function, saying that it was called."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        os.write(pipe, b"!")
        return function(*args, **kwargs)

    return wrapped


def start(command: str, config: DictConfig, log: Path) -> tuple[int, int]:
    """Fork the command -> its process and the end of a pipe that tells when its work begins."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        module, path = WORK[command]
        *owner, name = path.split(".")
        place: Any = importlib.import_module(module)
        for part in owner:
            place = getattr(place, part)
        setattr(place, name, announced(getattr(place, name), writing))
        importlib.import_module(f"migm.{command}").main(config)
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)


def run(command: str, config: DictConfig, log: Path, kill_after: float | None = None) -> tuple[bool, float]:
    """One start -> whether it was killed, and how long it worked; `kill_after` counts from the work's beginning."""
    process, reading = start(command, config, log)
    os.read(reading, 1)  # also returns, without a byte, when the command ended before
    began = time.monotonic()
    if kill_after is not None:
        # The pipe's other end closes with the process.
        while (left := began + kill_after - time.monotonic()) > 0 and select.select([reading], [], [], left)[0]:
            if not os.read(reading, 4096):
                break
        os.kill(process, signal.SIGKILL)  # a zombie until it is waited for: nothing else can have its number
    status = os.waitpid(process, 0)[1]
    os.close(reading)
    killed = os.WIFSIGNALED(status)
    if not killed and os.WEXITSTATUS(status):
        raise SystemExit(f"{command} ended with {os.WEXITSTATUS(status)}:\n{log.read_text()[-4000:]}")
    return killed, time.monotonic() - began


def listed(folder: Path) -> dict[str, int]:
    """Shards that a manifest below lists whole -> when each was written."""
    lines = [line for path in folder.rglob("manifest.jsonl") for line in path.read_text().split("\n")[1:-1]]
    shards = [next(folder.rglob(json.loads(line)["file"])) for line in lines]
    return {path.name: path.stat().st_mtime_ns for path in shards}


def torture(command: str, config: DictConfig, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """The folder of a run that nothing killed, those of the lives, and the moments of all kills."""
    rng, log = random.Random(f"{command} {seed}"), folder / f"{command}.log"

    def started(life: Path, kill_after: float | None = None) -> tuple[bool, float]:
        config.paths.output_dir = str(life)
        return run(command, config, log, kill_after)

    whole, moments, lives, lost = folder / f"{command}-whole", [], [], []
    span = started(whole)[1]
    while len(moments) < kills:
        life, killed, before = folder / f"{command}-{len(lives)}", True, {}
        lives.append(str(life))
        while killed:
            after = rng.uniform(0, span) if len(moments) < kills else None
            killed, _ = started(life, after)
            now = listed(life)
            lost += [name for name, when in before.items() if now.get(name) != when]
            before = now
            if killed:
                moments.append(after)
    return {"whole": str(whole), "lives": lives, "span": span, "moments": moments, "lost": lost}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    found, folder = {}, Path(asked["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    for name, arguments in asked["commands"].items():
        importlib.import_module(f"migm.{name}")
        with initialize_config_dir(conf_path(), version_base="1.3"):
            composed = compose(name, arguments)
        load(composed, ROOTS[name])  # imports what the config names
        found[name] = torture(name, composed, folder, asked["kills"], asked["seed"])
    sys.stdout.write(json.dumps(found))
