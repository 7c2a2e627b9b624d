"""Run a scorer in its own process and environment; a crash costs one item, not the measurement."""

import contextlib
import json
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from migm.runtime.errors import UserError
from migm.runtime.pictures import as_picture

WORKER = Path(__file__).with_name("worker.py")
START_SECONDS = 1800.0  # a model of 16 GB from a slow disk


class Crash(RuntimeError):
    """The process ended, or was killed after a timeout."""


class ScorerProcess:
    """`scorer`, a function of `worker.py`, run by the interpreter `python`; started with the first batch.

    A call maps uint8 images (b, 3, h, w) and b prompts to float64 scores (b,).
    """

    def __init__(
        self,
        python: str | Path,
        scorer: str,
        device: str = "cpu",
        settings: Mapping[str, str] | None = None,
        seconds_per_item: float = 120.0,
    ):
        self.python, self.scorer, self.seconds = Path(python).absolute(), scorer, seconds_per_item
        self.settings = {"scorer": scorer, "device": device, **(settings or {})}
        self.package, self._process = "", None
        self._folder, self._errors = tempfile.TemporaryDirectory(), tempfile.TemporaryFile()  # noqa: SIM115

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        items = []
        for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            path = Path(self._folder.name) / f"{i}.png"
            as_picture(image).save(path)
            items.append({"image": str(path), "prompt": prompt})
        return torch.tensor(self.score(items), dtype=torch.float64)

    def score(self, items: Sequence[Mapping[str, str]]) -> list[float]:
        """Return a score per item, `{"image": path, "prompt": text}`; items without a score raise UserError."""
        outcomes = self._outcomes(items)
        failed = [(i, outcome["error"]) for i, outcome in enumerate(outcomes) if "error" in outcome]
        if failed:
            first, reason = failed[0]
            raise UserError(
                f"{self.scorer} gave no score for {len(failed)} of {len(items)} images, "
                f"first for number {first} of the batch: {reason}"
            )
        return [float(outcome["score"]) for outcome in outcomes]

    def close(self) -> None:
        """End the process; the next batch starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _outcomes(self, items: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
        try:
            return self._batch(items)
        except Crash:
            return [self._alone(item) for item in items]

    def _alone(self, item: Mapping[str, str]) -> dict[str, Any]:
        try:
            return self._batch([item])[0]
        except Crash as crash:
            return {"error": str(crash)}

    def _batch(self, items: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
        if self._process is None:
            self._start()
        return self._ask({"items": list(items)}, self.seconds * len(items))["scores"]

    def _start(self) -> None:
        if not self.python.exists():
            raise UserError(f"the scorer {self.scorer} does not start: no such interpreter as {self.python}")
        self._process = subprocess.Popen(
            [str(self.python), str(WORKER)],
            cwd=self._folder.name,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            self.package = self._ask(self.settings, START_SECONDS)["package"]
        except Crash as crash:
            raise UserError(f"the scorer {self.scorer} does not start: {crash}") from crash

    def _ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            late = not timer.is_alive()
            timer.cancel()
        if answer.endswith("\n"):  # else the process ended while writing
            return json.loads(answer)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)  # its own exit code, rather than that of being killed
        self.close()
        raise Crash(
            f"no answer within {seconds:.0f} s"
            if late
            else f"it ended with code {process.returncode}, {self._last_words()}"
        )

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"saying: {lines[-1]}" if lines else "saying nothing"
