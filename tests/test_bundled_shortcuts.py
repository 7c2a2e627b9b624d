"""Commands run the bundled shortcut where none was trained, say which file ran, and record its fingerprint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from test_commands import Outcome, refused

import migm.analyse
import migm.evaluate
import migm.generate
import migm.train
from migm.accelerators.predictors.shortcut import Shortcut
from migm.bases.maskgit import MaskGIT
from migm.evaluation.results import Results, read
from migm.shortcuts.checkpoint import save_shortcut

COMMAND = "python -m migm.train +experiment=tiny_shortcut"
ONE = ["labels=[3]", "seeds=[0]"]
COSTS = ["metric=[none]", "evalset.batch_size=2", "~points.vanilla", "~points.reuse"]


class Place:
    """A folder with the weights of a tiny base, `bundled` beside them, and `trained` where a training writes it."""

    def __init__(self, folder: Path, base: MaskGIT, call: Callable[..., Outcome], network: Callable[..., Any]):
        self.base, self.main, self.network = base, call, network
        self.assets, self.output = folder / "assets", folder / "out" / "tiny_shortcut"
        self.bundled, self.trained = self.assets / "shortcut.safetensors", self.output / "shortcut.safetensors"
        self.assets.mkdir()
        for name, module in {"weights": base.transformer, "tokenizer_weights": base.tokenizer}.items():
            save_file({key: value.clone() for key, value in module.state_dict().items()}, self.assets / name)

    def put(self, path: Path, seed: int) -> str:
        """Write a shortcut of random weights and return its fingerprint."""
        card = {"data": "eight photos", "trained": "5 steps"} if path == self.bundled else None
        save_shortcut(self.network(seed).float(), self.base.fingerprint(), path, card)
        return Shortcut(path).fingerprint(self.base)

    def call(self, main: Callable[[], None], *more: str) -> Outcome:
        base = [f"+base.{name}={self.assets / name}" for name in ("weights", "tokenizer_weights")]
        shared = ["+experiment=tiny_shortcut", "device=cpu", "base.random_weights=false", *base]
        return self.main(main, *shared, f"paths.output_dir={self.output.parent}", *more)

    def predictors(self) -> set[str]:
        return {record["predictor"] for record in read(self.output / "results.jsonl")}


@pytest.fixture
def place(tmp_path, make_base, call_main, make_shortcut) -> Place:
    return Place(tmp_path, make_base(), call_main, make_shortcut)


def said(outcome: Outcome) -> list[str]:
    """The lines about the shortcut that a command which worked has printed."""
    code, out, err = outcome
    assert code == 0, err
    return [line for line in out.splitlines() if line.startswith("shortcut")]


def bundled_line(place: Place) -> str:
    return f"shortcut: {place.bundled}, bundled with the base (5 steps, eight photos); to train your own: {COMMAND} "


def test_generate_says_which_file_drew_and_a_named_one_has_no_substitute(place):
    refused(place.call(migm.generate.main, *ONE), f"predictor.weights={place.trained}: no such file", COMMAND)
    place.put(place.bundled, 1)
    (line,) = said(place.call(migm.generate.main, *ONE))
    assert line.startswith(bundled_line(place))
    assert line.endswith(f"paths.output_dir={place.output.parent}")
    assert "labels" not in line
    bundled = (place.output / "images.png").read_bytes()
    place.put(place.trained, 2)
    assert said(place.call(migm.generate.main, *ONE)) == [f"shortcut: {place.trained}, trained here"]
    assert (place.output / "images.png").read_bytes() != bundled
    named = [f"accelerator.predictor.weights={file}" for file in (place.bundled, place.assets / "none")]
    assert said(place.call(migm.generate.main, *ONE, named[0])) == [f"shortcut: {place.bundled}"]
    assert (place.output / "images.png").read_bytes() == bundled
    refused(place.call(migm.generate.main, *ONE, named[1]), f"{named[1]}: no such file")
    missing = "_no_cross_attention/shortcut.safetensors: no such file"
    refused(place.call(migm.generate.main, *ONE, "accelerator=no_cross_attention"), missing)


def test_evaluate_measures_other_weights_anew_and_records_those_that_ran(place):
    refused(place.call(migm.evaluate.main, *COSTS), f"predictor.weights={place.trained}: no such file", COMMAND)
    assert not (place.output / "results.jsonl").exists()
    first = place.put(place.bundled, 1)
    (line,) = said(place.call(migm.evaluate.main, *COSTS))
    assert line.startswith(bundled_line(place))
    assert place.predictors() == {first}
    before = read(place.output / "results.jsonl")
    said(place.call(migm.evaluate.main, *COSTS))
    assert read(place.output / "results.jsonl") == before
    second = place.put(place.trained, 2)
    assert said(place.call(migm.evaluate.main, *COSTS)) == [f"shortcut: {place.trained}, trained here"]
    assert place.predictors() == {first, second}
    results = Results(place.output / "results.jsonl")
    assert len(results.records) == 2 * len(before)
    assert results.has({**before[0], "predictor": second})
    assert not results.has({**before[0], "predictor": "other"})


def test_processes_that_find_other_weights_than_the_first_measure_nothing(place, monkeypatch):
    found = place.put(place.bundled, 1)
    monkeypatch.setattr("migm.evaluation.study.from_first", lambda _: ["abcdefabcdef"])
    refused(place.call(migm.evaluate.main, *COSTS), f"found weights {found}, rank 0 abcdefabcdef")
    assert not (place.output / "results.jsonl").exists()


def test_a_training_measures_its_own_weights_although_others_are_bundled(place):
    bundled = place.put(place.bundled, 1)
    small = ["data.num_images=8", "data.num_val_images=4", "data.batch_size=4", "trainer.max_steps=4", "report=false"]
    outcome = place.call(migm.train.main, *small, *COSTS, "trainer.enable_progress_bar=false", "~callbacks.progress")
    assert f"shortcut: {place.trained}, trained here" in said(outcome)
    assert place.predictors() == {Shortcut(place.trained).fingerprint(place.base)} != {bundled}


def test_analyse_refuses_a_missing_file_before_it_begins(place):
    chosen = ["analysis=[images]", "analyses.images.num_images=1", "analyses.images.repeats=1", *COSTS]
    refused(place.call(migm.analyse.main, *chosen, "analysis=[layers,images]"), f"{place.trained}: no such file")
    assert not (place.output / "analyses" / "layers.png").exists()
    place.put(place.bundled, 1)
    (line,) = said(place.call(migm.analyse.main, *chosen))
    assert line.startswith(bundled_line(place))


def test_a_base_alone_is_told_the_command_with_its_experiment(place, tmp_path):
    missing = f"predictor.weights={tmp_path}/mine/shortcut.safetensors: no such file; to train one: "
    chosen = ["base=tiny", "evalset=tiny", "device=cpu", "name=mine", f"paths.output_dir={tmp_path}", *ONE]
    wanted = f"python -m migm.train +experiment=tiny_shortcut name=mine device=cpu paths.output_dir={tmp_path}"
    refused(place.main(migm.generate.main, *chosen), missing + wanted)
