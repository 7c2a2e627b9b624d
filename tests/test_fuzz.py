"""Damaged manifests, results and configs: whatever they hold, what a user sees is one line or a success."""

import json
import re
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tiny_parts import composed, feature_net, reference_for, synthetic

from migm.config.building import build, load
from migm.config.points import points
from migm.config.roots import TrainConfig
from migm.evaluation.results import REQUIRED, Results
from migm.evaluation.study import study
from migm.reporting.audit import audit
from migm.reporting.summary import summarise, table
from migm.reporting.tables import best_two, deltas, fronts
from migm.reporting.write import equal_time, write_report
from migm.runtime.jsonl import append_line
from migm.sampling.sampler import Sampler
from migm.training.run import Training
from migm.trajectories.dataset import PairDataset
from migm.trajectories.store import Store

# What `migm.runtime.errors.command` shows as one line; anything else reaches the user as a traceback.
REFUSALS = (ValueError, OSError)
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def examples(number: int) -> settings:
    return settings(max_examples=number, derandomize=True, database=None, deadline=None, suppress_health_check=CHECKS)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-3, 40),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "000000.safetensors", "../x", "nan", "\ud800", 10**400, -0.0, 1e308, "vanilla", "ffe"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
junk = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 5000, b'{"a":' * 3000, b"NaN", b"{}\n{}"]),
    values.map(lambda value: json.dumps(value).encode()),
)


@st.composite
def damaged(draw: Any, lines: list[dict[str, Any]]) -> bytes:
    """The file of these lines with some values exchanged, keys dropped, lines replaced or doubled, bits flipped."""
    written = [json.dumps(line).encode() for line in lines]
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        how = draw(st.sampled_from(["value", "value", "value", "drop", "junk", "double", "flip"]))
        line, key = dict(lines[place]), draw(st.sampled_from(sorted(lines[place])))
        if how == "value":
            written[place] = json.dumps({**line, key: draw(values)}).encode()
        elif how == "drop":
            written[place] = json.dumps({name: value for name, value in line.items() if name != key}).encode()
        elif how == "junk":
            written[place] = draw(junk)
        elif how == "double":
            written[place] = written[place] + b"\n" + written[place]
        elif written[place]:
            data = bytearray(written[place])
            data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
            written[place] = bytes(data)
    return b"\n".join(written) + draw(st.sampled_from([b"\n", b"", b"\n\n", b'\n{"a"', b"\n\xc3"]))


HEADER = {"base": "0123456789ab", "storage": "features", "copies": 2, "num_steps": 4, "seed": 0, "sampling": {"a": [1]}}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    made = Store(tmp_path_factory.mktemp("fuzz") / "store", HEADER)
    for images in ((0, 1, 2), (3,)):
        made.append(synthetic(images))
    return made.folder, [json.loads(line) for line in made.manifest.read_text().splitlines()]


def read_store(store: tuple[Path, list[dict[str, Any]]], data: st.DataObject) -> None:
    folder, lines = store
    text = data.draw(damaged(lines))
    (folder / "manifest.jsonl").write_bytes(text)
    try:
        found = Store(folder, HEADER)
        found.verify()
        pairs = PairDataset(found)
        pairs.__getitems__(range(len(pairs)))
    except REFUSALS as refusal:
        said = str(refusal)
    else:
        said = str(folder)
    assert str(folder) in said
    (folder / "manifest.jsonl").write_bytes(text)
    try:
        append_line(folder / "manifest.jsonl", {"a": 1})
    except REFUSALS:
        assert (folder / "manifest.jsonl").read_bytes() == text


def record(metric: str, number: int, accelerator: str, **more: Any) -> dict[str, Any]:
    about = {
        "variant": "",
        "settings": "s",
        "base": "b",
        "predictor": None,
        "sampling": "s",
        "inputs": "i",
        "decoder": "d",
    }
    about |= {"time": "2026-01-01T00:00:00", "device": "cpu", "torch": "2", "migm": "0", "commit": "c", "unit": "s"}
    steps = {"num_steps": number, "num_full_steps": min(number, 4) if accelerator != "vanilla" else number}
    return {
        "metric": metric,
        "value": 1.0 / number,
        "accelerator": accelerator,
        **steps,
        **about,
        "higher_is_better": False,
        **more,
    }


RECORDS = [
    record(metric, number, accelerator, **more)
    for accelerator, number in (("vanilla", 4), ("vanilla", 16), ("shortcut", 16))
    for metric, more in (
        ("seconds_per_image/batch4_amortised", {"n": 4, "run": "r", "repeats": 5}),
        ("peak_bytes/batch4_amortised", {"n": 4, "counter": "c"}),
        ("ffe", {"mean_full_steps": 4.0, "ffe_steps": [1.0], "rows": {"blocks": 1}}),
        ("cache_bytes_per_image", {}),
        ("fd_cifarnet_20", {"seed_set": 0, "reference": "r", "n": 20, "evalset": "e"}),
    )
]


def read_results(folder: Path, data: st.DataObject, report: bool = False) -> None:
    path = folder / "results.jsonl"
    path.write_bytes(data.draw(damaged(RECORDS)))
    try:
        known = Results(path)
        assert all(set(line) >= REQUIRED for line in known.records)
    except REFUSALS as refusal:
        said = str(refusal)
    else:
        said = str(path)
    assert str(path) in said
    try:
        if report:
            write_report([path], folder / "report")
        for part in audit([path])[0]:
            summary = summarise(part.records)
            for row in summary.rows:
                for made in (table, deltas, best_two):
                    made(summary, row)
            fronts(summary)
            equal_time(summary)
    except REFUSALS:
        pass


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Any:
    """The tiny experiment's composed config."""
    output = tmp_path_factory.mktemp("config")
    assets = output / "assets"
    reference_for(feature_net(assets / "cifarnet.safetensors"), assets / "cifarnet_train50k.safetensors")
    places = [f"paths.output_dir={output}", f"paths.assets={assets}", "device=cpu", "~points.shortcut"]
    return composed("train", "+experiment=tiny_shortcut", *places)


def keys(node: Any, path: str = "") -> list[str]:
    """Every key of a config, dotted; another class is no matter of values."""
    found = []
    for key in (key for key in node if key != "_target_"):
        where = f"{path}.{key}" if path else str(key)
        inner = OmegaConf.to_container(node, resolve=False)[key]  # type: ignore[index,call-overload]
        found += [where, *(keys(node[key], where) if isinstance(inner, dict) else [])]
    return found


# Of a size that nothing is allocated by: what is too large for a machine is no matter of types.
oddities = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 9) | st.sampled_from([2**63, -(2**63) - 1, 10**400]),
    st.floats(-4, 4) | st.sampled_from([float("nan"), float("inf")]),
    st.sampled_from(
        ["", "abc", "null", "-1", "1e3", "cpu", "${nowhere}", "${", "???", "a b", "ä", "migm.runtime", "os.getcwd"]
    ),
    st.sampled_from(["feature", "float8", "linear", "papr", "bf16", "int8"]),
    st.lists(st.integers(0, 3) | st.text(max_size=3) | st.sampled_from([None, 1.5, True, 2**64, [1]]), max_size=2),
    st.dictionaries(
        st.sampled_from(["a", "_target_", "num_steps"]), st.integers(0, 3) | st.text(max_size=3), max_size=2
    ),
)


KNOWN = {"config", *(field.name for field in fields(TrainConfig))}


def checked(changed: Any) -> TrainConfig:
    """What `load` makes of a config; a refusal begins with the key."""
    try:
        return load(changed, TrainConfig)
    except REFUSALS as refusal:
        said = str(refusal)
        if re.sub(r"\W.*", "", said.removeprefix("config key "), flags=re.DOTALL) not in KNOWN:
            pytest.fail(f"names no key: {said}")
        raise


def make_training(config: Any, data: st.DataObject) -> None:
    """All that `migm.train` does before it starts to work."""
    changed = config.copy()
    for key in data.draw(st.lists(st.sampled_from(keys(config)), min_size=1, max_size=2)):
        with suppress(OmegaConfBaseException):  # what cannot even be written, Hydra refuses itself
            OmegaConf.update(changed, key, data.draw(oddities), merge=False, force_add=True)
    try:
        loaded = checked(changed)
        base, sampling, made = build(loaded.base), build(loaded.sampling), build(loaded.data)
        training = Training(loaded, base)
        training.refuse_without_room()
        study(points(changed, loaded), loaded, base)
        made.attach(Sampler(base, sampling), loaded.seed)
    except REFUSALS:
        pass


@given(data=st.data())
@examples(150)
def test_no_manifest_ends_in_a_traceback(store, data):
    read_store(store, data)


@given(data=st.data())
@examples(120)
def test_no_results_file_ends_in_a_traceback(tmp_path, data):
    read_results(tmp_path, data)


@given(data=st.data())
@examples(20)
def test_no_config_ends_in_a_traceback(config, data):
    make_training(config, data)


@pytest.mark.slow
@given(data=st.data())
@examples(2000)
def test_no_manifest_ends_in_a_traceback_in_many_tries(store, data):
    read_store(store, data)


@pytest.mark.slow
@given(data=st.data())
@examples(1500)
def test_no_results_file_ends_in_a_traceback_in_many_tries(tmp_path, data):
    read_results(tmp_path, data)


@pytest.mark.slow
@given(data=st.data())
@examples(15)
def test_no_report_of_a_damaged_file_ends_in_a_traceback(tmp_path, data):
    read_results(tmp_path, data, report=True)


@pytest.mark.slow
@given(data=st.data())
@examples(400)
def test_no_config_ends_in_a_traceback_in_many_tries(config, data):
    make_training(config, data)
