"""Variants are composed and checked before anything is built, and share a base where its config is equal."""

import json

import pytest

import migm.bench
from migm.benchmarks import variants
from migm.config.compare import as_override

ARGS = ["+experiment=tiny_shortcut", "device=cpu", "repeats=1", "batch_sizes=[1]", "points={vanilla: [2]}"]


@pytest.mark.parametrize(
    ("value", "text"), [(True, "true"), (None, "null"), (3, "3"), ("fp8_rowwise", "fp8_rowwise"), ("a b", "'a b'")]
)
def test_values_are_written_as_on_the_command_line(value, text):
    assert as_override("compare[0]", "base.x", value) == text


@pytest.mark.parametrize(
    ("compare", "words"),
    [
        ("[{}, {runtime.compil: false}]", ["compare[1]", "compil"]),
        ("[{}, {runtime.compile: maybe}]", ["compare[1]", "runtime.compile=maybe"]),
        ("[{base: tinny}]", ["compare[0]", "tinny"]),
        ("[{device: cuda}]", ["compare[0]", "device", "base, sampling, shortcut, accelerator, runtime"]),
        ("[{base.device: cpu}]", ["compare[0]", "base.device"]),
        ("[{batch_sizes: 3}]", ["compare[0]", "batch_sizes"]),
        ("[{base.dtype: [1]}]", ["compare[0]", "base.dtype"]),
        ("[{}, {}]", ["default", "twice"]),
        ("[base]", ["compare[0]=base"]),
    ],
)
def test_a_variant_that_does_not_compose_is_refused_before_anything_is_built(
    tmp_path, call_main, monkeypatch, compare, words
):
    monkeypatch.setattr(variants, "build", lambda node: pytest.fail("built"))
    code, out, err = call_main(migm.bench.main, *ARGS, f"paths.output_dir={tmp_path}", f"compare={compare}")
    assert code != 0
    (line,) = [line for line in (out + err).splitlines() if line.startswith("error:")]
    assert all(word in line for word in words), line


def test_a_base_is_built_once_for_each_different_config_with_the_same_weights(tmp_path, call_main, monkeypatch):
    bases, build = [], variants.build

    def noted(node):
        bases.extend([node["dtype"]] if node["_target_"].endswith("MaskGIT") else [])
        return build(node)

    monkeypatch.setattr(variants, "build", noted)
    compare = "compare=[{}, {runtime.compile: false}, {base.dtype: float32}, {sampling.draw.dtype: float32}]"
    code, out, err = call_main(migm.bench.main, *ARGS, f"paths.output_dir={tmp_path}", compare)
    assert code == 0, out + err
    assert bases == ["float64", "float32"]
    rows = [json.loads(line) for line in (tmp_path / "tiny_shortcut" / "bench.jsonl").read_text().splitlines()]
    names = ["default", "runtime.compile=false", "base.dtype=float32", "sampling.draw.dtype=float32"]
    assert list(dict.fromkeys(row["variant"] for row in rows)) == names
    fingerprints = {name: {row["base"] for row in rows if row["variant"] == name} for name in names}
    assert fingerprints[names[0]] == fingerprints[names[1]] == fingerprints[names[3]] != fingerprints[names[2]]
    assert "of the first" in out
