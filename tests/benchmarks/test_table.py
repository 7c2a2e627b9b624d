"""Tables and figures put variants side by side, with ratios to the first one."""

from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from migm.benchmarks.table import bars, draw, figure_path, show, side_by_side


def row(kind, part, variant, ms, batch=1):
    about = {"kind": kind, "part": part, "variant": variant, "batch_size": batch, "device": "a device"}
    return {**about, "ms_per_image": ms, "gflop": 1.0, "floor_ms": ms / 4, "of_floor": 0.25}


ROWS = [
    *(row("run", "vanilla 8", variant, ms) for variant, ms in (("default", 80.0), ("b", 40.0))),
    *(row("step", "full", variant, ms) for variant, ms in (("default", 10.0), ("b", 5.0))),
    row("step", "tail", "b", 0.5),
]


def test_variants_stand_side_by_side_with_ratios_to_the_first():
    found = [(each["part"], each["variant"], each.get("of_first")) for each in side_by_side(ROWS)]
    pairs = [("vanilla 8", "default", 1), ("vanilla 8", "b", 0.5), ("full", "default", 1), ("full", "b", 0.5)]
    assert found == [*pairs, ("tail", "b", None)]
    assert all("of_first" not in each for each in side_by_side([ROWS[0], ROWS[2]]))


def test_the_table_shows_steps_before_runs_and_only_columns_with_values(capsys):
    show(ROWS, "batch 1, a device")
    out = capsys.readouterr().out
    assert out.index("full step") < out.index("vanilla 8")
    assert "of the first" in out
    assert "speed-up" not in out
    assert "memory" not in out


def test_bars_are_as_long_as_the_times_with_a_line_at_each_floor():
    figure, axes = plt.subplots()
    bars(axes, [each for each in ROWS if each["kind"] == "step"], ["default", "b"])
    lengths = [patch.get_width() for patch in axes.patches]
    assert lengths == [10.0, 5.0, 0.5]
    floors = [segment[0][0] for lines in axes.collections for segment in lines.get_segments()]
    assert floors == [2.5, 1.25, 0.125]
    plt.close(figure)


def test_the_figure_is_one_of_a_name_and_a_device(tmp_path):
    path = figure_path(tmp_path / "bench.jsonl", "dimoo_shortcut", "NVIDIA H200")
    assert path == tmp_path / "bench_dimoo_shortcut_nvidia_h200.png"
    assert draw([*ROWS, row("run", "vanilla 8", "b", 3.0, batch=4)], path)
    assert path.stat().st_size > 0
    assert not draw([{**ROWS[0], "kind": "profile"}], tmp_path / "none.png")
    assert not Path(tmp_path / "none.png").exists()


def test_rows_of_two_devices_are_never_drawn_together(tmp_path):
    with pytest.raises(ValueError, match="two devices"):
        draw([*ROWS, {**ROWS[0], "device": "another"}], tmp_path / "bench.png")
