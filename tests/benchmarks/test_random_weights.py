"""bench builds the published experiments without network and without any file, here with small sizes."""

import json
import socket

import pytest
import test_dimoo_chain
import test_maskgit_chain

import migm.bench

POINTS = {
    "dimoo_shortcut": "points={vanilla: [8], shortcut: [[8,3]]}",
    "maskgit_shortcut": "points={shortcut: [[15,7]]}",
}
BASES = {
    "dimoo_shortcut": [line for line in test_dimoo_chain.SMALL if line.startswith(("base", "device", "sampling"))],
    "maskgit_shortcut": [
        *(line for line in test_maskgit_chain.SMALL if line.startswith(("base", "device"))),
        "shortcut.num_heads=2",
    ],
}


@pytest.mark.parametrize("experiment", sorted(BASES))
def test_published_shapes_build_from_random_weights_alone(tmp_path, call_main, monkeypatch, experiment):
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, lambda *_: pytest.fail("went to the network"))
    monkeypatch.delenv("MIGM_PROMPTS", raising=False)
    args = [f"+experiment={experiment}", *BASES[experiment], POINTS[experiment], f"paths.output_dir={tmp_path}"]
    few = ["repeats=1", "batch_sizes=[1]", "new_lengths=1", "runtime.compile=false"]
    code, out, err = call_main(migm.bench.main, *args, *few)
    assert code == 0, out + err
    rows = [json.loads(line) for line in (tmp_path / experiment / "bench.jsonl").read_text().splitlines()]
    kinds = ["run", "step", "new_length", "memory"] if experiment == "dimoo_shortcut" else ["run", "step", "memory"]
    assert list(dict.fromkeys(row["kind"] for row in rows)) == kinds
    runs = {row["part"]: row for row in rows if row["kind"] == "run"}
    assert ("speedup" in runs["shortcut 8,3"]) if experiment == "dimoo_shortcut" else list(runs) == ["shortcut 15,7"]
