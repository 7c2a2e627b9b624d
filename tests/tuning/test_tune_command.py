"""`migm.tune` as typed, with real times: it says what is needed, plans, shows progress and ends in time."""

import re

import pytest
from test_tune import SMALL

import migm.tune
from migm.config.fronts import read_front

pytest.importorskip("optuna")


def test_the_command_plans_says_how_far_it_is_and_ends_in_time(call_main, assets, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = [each for each in SMALL if not each.startswith(("shares", "budget"))]
    given += [f"paths.assets={assets}", "shares=[0.5]"]
    code, out, err = call_main(migm.tune.main, *given, "budget=0.001")
    assert code == 2, err
    needed = re.search(r"budget=0.001 minutes is too short.* need budget=([\d.]+)", err)[1]
    code, out, err = call_main(migm.tune.main, *given, f"budget={2 * float(needed)}")
    assert code == 0, err
    assert re.search(r"^shortcut is left out: .*no such file", out, re.MULTILINE)
    assert re.search(r"^plan for [\d.]+ minutes: .* \d+ of 4 images.* 8 images", out, re.MULTILINE)
    assert re.search(r"candidates .*left .*, in all", out)
    minutes = float(re.search(r"^([\d.]+) minutes; front in outputs/tuned/front.json", out, re.MULTILINE)[1])
    assert minutes <= 2 * float(needed)
    front = read_front(tmp_path / "outputs" / "tuned" / "front.json")
    assert (front.name, front.about["by"]) == ("tiny", "migm.tune")
