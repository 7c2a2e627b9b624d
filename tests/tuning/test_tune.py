"""The command on the tiny base: its files, its seeds, a kill, a second start, and what it refuses."""

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from filelock import FileLock
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from migm.config.building import build, conf_path, load
from migm.config.candidates import CandidateParts
from migm.config.fronts import read_front
from migm.config.points import point
from migm.config.roots import EvaluateConfig, TuneConfig
from migm.evaluation.study import Study
from migm.runtime.errors import UserError
from migm.runtime.jsonl import read_lines
from migm.sampling.sampler import Sampler
from migm.tuning import run, timing
from migm.tuning.rungs import Rates, Rungs

pytest.importorskip("optuna")

FEW = ["~methods.hicache", "~methods.foca", "~methods.taylorseer_uniform", "~methods.taylorseer_table"]
SMALL = [
    *("base=tiny", "data=tiny", "evalset=tiny", "device=cpu", "name=tuned", "metric=[fd_cifarnet]"),
    *("shares=[0.5,1.0]", "rungs=[4,6]", "seed_sets=[11,12]", "keep=2", "finalists=1", "budget=10"),
    *("verify_images=8", "verify_seed_sets=[1,2]", "latency=[batch2_amortised]", "num_steps=[4,6]", *FEW),
]


@pytest.fixture(scope="module")
def small(assets):
    """The command's config for few images, composed once."""
    with initialize_config_dir(conf_path(), version_base="1.3"):
        yield compose("tune", [*SMALL, f"paths.assets={assets}"])


@pytest.fixture
def fixed(monkeypatch):
    """Times and a plan that are the same in each start."""
    monkeypatch.setattr(run, "measured", lambda *_: (Rates(0.02, 0.001, 0.01), {"reuse": 0.05, "taylorseer": 0.05}))
    monkeypatch.setattr(run, "planned", lambda wanted, *_: Rungs([4, 2], wanted.verify_images, 5.0, 5.0))


@pytest.fixture
def start(small, fixed):
    """Tune into a folder, with changed keys."""

    def started(folder, **changes):
        cfg = OmegaConf.create(small)
        cfg.paths.output_dir = str(folder)
        for key, value in changes.items():
            OmegaConf.update(cfg, key.replace("__", "."), value, merge=False, force_add=True)
        run.tune(CandidateParts(cfg, load(cfg, TuneConfig)))

    return started


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """The folder of one that ran to its end."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        fixed.__wrapped__(patch)
        start.__wrapped__(small, None)(folder)
    return folder / "tuned"


def trials(folder: Path) -> list[dict]:
    """What a search measured, without when."""
    kept = [line for line in read_lines(folder / "tune" / "trials.jsonl") if line.get("kind") == "trial"]
    return [{key: value for key, value in line.items() if key != "spent"} for line in kept]


def points(folder: Path) -> list[tuple]:
    return [
        (p.accelerator, p.num_steps, p.num_full_steps, p.changes, p.value)
        for p in read_front(folder / "front.json").points
    ]


def test_the_search_and_the_verification_see_seeds_of_their_own(whole):
    searched = trials(whole)
    assert Counter(line["rung"] for line in searched) == {0: 8, 1: 4}
    assert {(line["rung"], line["seed_set"]) for line in searched} == {(0, 11), (1, 12)}
    records = read_lines(whole / "tune" / "results.jsonl")
    seeds = {(r["metric"], r["seed_set"]) for r in records if "seed_set" in r}
    assert {seed for metric, seed in seeds if metric.endswith(("_4", "_6"))} == {11, 12}
    assert {seed for metric, seed in seeds if metric.endswith("_8")} == {1, 2}


def test_the_front_holds_what_was_verified_beside_vanilla_as_readers_choose_it(whole, small):
    front = read_front(whole / "front.json")
    assert (whole / "front.json").read_bytes() == (whole / "tune" / "front.json").read_bytes()
    assert (front.metric, front.vanilla.num_steps) == ("kd_cifarnet_8", 6)
    assert front.resolution is not None
    records = read_lines(whole / "tune" / "results.jsonl")
    timed = [record for record in records if record["metric"].startswith("seconds_per_image/")]
    assert len({record["run"] for record in timed}) == 1  # side by side
    assert len(timed) == len(front.points) + 1
    for each in front.points:
        assert each.seed_sets == [1, 2]
        overrides = [f"accelerator={each.accelerator}", f"sampling.num_steps={each.num_steps}"]
        b = each.num_steps if each.num_full_steps is None else each.num_full_steps
        overrides += [f"sampling.num_full_steps={b}", *(f"{key}={value}" for key, value in each.changes.items())]
        chosen = ["base=tiny", "device=cpu", f"paths.assets={small.paths.assets}", *overrides]
        config = load(compose("evaluate", chosen), EvaluateConfig)
        sampler = Sampler(build(config.base), *point(config))
        assert front.base == [sampler.base.fingerprint()]
        about = {key: sampler.identity[key] for key in ("sampling", "settings", "num_steps", "predictor")}
        (record,) = (r for r in timed if all(r[key] == value for key, value in about.items()))
        assert front.vanilla.ms / each.speed == pytest.approx(1e3 * record["value"])


def test_table_and_figure_lie_beside_the_trials(whole):
    files = {path.name for path in (whole / "tune").iterdir()}
    assert {"trials.jsonl", "results.jsonl", "front.json", "front.png", "table.md"} <= files
    table = (whole / "tune" / "table.md").read_text().splitlines()
    assert len(table) == 2 + len(points(whole)) + 1


def killed_at(stop, start, folder, monkeypatch):
    """Kill a start at its measurement number `stop`, and start it again -> the measurements of both."""
    quality, made = Study.measure_quality, []

    def counted(study):
        made.append(study)
        if len(made) == stop:
            raise KeyboardInterrupt
        quality(study)

    monkeypatch.setattr(Study, "measure_quality", counted)
    with pytest.raises(KeyboardInterrupt):
        start(folder)
    journal = folder / "tuned" / "tune" / "trials.jsonl"
    assert len(trials(folder / "tuned")) == min(stop - 1, 12)  # all that were done
    with journal.open("a") as file:
        file.write('{"kind": "trial", "ru')  # a line that a kill cut off
    start(folder)
    return made


@pytest.mark.parametrize("stop", [1, *(pytest.param(each, marks=pytest.mark.slow) for each in (5, 9, 13))])
def test_killed_anywhere_it_goes_on_to_the_same_end(whole, start, tmp_path, monkeypatch, stop):
    made = killed_at(stop, start, tmp_path, monkeypatch)
    assert len(made) == 14  # 12 trials and the verification, of which one was begun twice
    assert trials(tmp_path / "tuned") == trials(whole)
    assert points(tmp_path / "tuned") == points(whole)


@pytest.fixture
def ended(whole, tmp_path):
    """A copy of the one that ran to its end -> the folder of its outputs."""
    shutil.copytree(whole, tmp_path / "tuned")
    return tmp_path


def test_a_second_start_of_a_finished_one_measures_nothing(start, ended, whole, monkeypatch, capsys):
    monkeypatch.setattr(Study, "_measure_point", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(run, "measured", lambda *_: pytest.fail("timed again"))
    start(ended)
    out = capsys.readouterr().out
    assert "goes on after 12 measurements" in out
    for share in ("50%", "100%"):
        assert len(re.findall(rf"^within {share} of vanilla's time: .+", out, re.MULTILINE)) == 1
    assert trials(ended / "tuned") == trials(whole)
    assert points(ended / "tuned") == points(whole)


OTHER = [
    ({"shares": [0.5]}, "begun with shares=[0.5, 1.0], not [0.5]; choose another name="),
    ({"budget": 20}, "begun with budget=10, not 20; choose"),
    ({"methods__taylorseer__policy__first_enhance": [2]}, "methods.taylorseer.choices.policy.first_enhance="),
    ({"sampling__select__temperature": 3}, "begun with sampling="),
]


@pytest.mark.parametrize(("changes", "words"), OTHER, ids=[next(iter(changes)) for changes, _ in OTHER])
def test_other_settings_are_refused(start, ended, changes, words):
    with pytest.raises(UserError, match=re.escape(words)):
        start(ended, **changes)


def test_two_starts_at_once_are_refused(start, tmp_path):
    (tmp_path / "tuned" / "tune").mkdir(parents=True)
    with (
        FileLock(tmp_path / "tuned" / "tune" / ".migm-lock"),
        pytest.raises(UserError, match="is being written by another command"),
    ):
        start(tmp_path)


EARLY = [
    ({"seed_sets": [11, 2]}, "the search sees [2]"),
    ({"seed_sets": [11, 11]}, "seed_sets=[11, 11] must differ"),
    ({"seed_sets": [11]}, "seed_sets=[11] must be as many as rungs=[4, 6]"),
    ({"rungs": [6, 4]}, "rungs=[6, 4] must ascend"),
    ({"search_metric": "fd_cifarnet"}, "search_metric=fd_cifarnet: its value depends on the number of images"),
    ({"search_metric": "kd"}, "search_metric: metric kd is unknown"),
    ({"budget": 0}, "budget=0 must be a number above 0"),
    ({"shares": [1.2]}, "shares[0]=1.2 must be"),
]
LATER = [
    ({"methods__taylor": {}}, "methods: accelerator taylor is unknown; did you mean taylorseer?"),
    (
        {"methods__taylorseer__policy__frst": [2]},
        "methods.taylorseer.policy.frst=2: config key accelerator.policy.frst",
    ),
    ({"methods__reuse__policy": 3}, "methods.reuse.policy=3 must be a list"),
    ({"num_steps": [4, 17]}, "num_steps=[4, 17]: N is at most 16"),
    ({"sampler__select__temperature": [2, 1]}, "sampler.select.temperature=[2, 1] must be the least and the most"),
    ({"methods": {"l2p": {}}}, "methods: none can run here; l2p is left out: "),
    # a single rung takes a metric that depends on the number of images, so that what is wrong later is said
    ({"search_metric": "fd_cifarnet", "rungs": [4], "seed_sets": [11], "methods": {"l2p": {}}}, "none can run here"),
]


@pytest.mark.parametrize(("changes", "words"), EARLY, ids=[str(changes) for changes, _ in EARLY])
def test_what_cannot_be_is_refused_before_the_base_is_built(start, tmp_path, monkeypatch, changes, words):
    monkeypatch.setattr(run, "build", lambda *_: pytest.fail("built"))
    with pytest.raises(UserError, match=re.escape(words)):
        start(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("changes", "words"), LATER, ids=[str(changes) for changes, _ in LATER])
def test_what_cannot_be_is_refused_before_any_image(start, tmp_path, monkeypatch, changes, words):
    monkeypatch.setattr(Sampler, "tokens", lambda *_: pytest.fail("sampled"))
    with pytest.raises(UserError, match=re.escape(words)):
        start(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_the_extra_is_named(start, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(UserError, match=r"migm.tune needs optuna, which is not installed: .*\[sweep\]"):
        start(tmp_path)


def test_another_file_is_not_replaced(start, tmp_path):
    (tmp_path / "tuned").mkdir(parents=True)
    (tmp_path / "tuned" / "front.json").write_text("[]")
    with pytest.raises(UserError, match=r"name=tuned.*front\.json"):
        start(tmp_path)


def test_cheap_steps_are_timed_or_counted(small):
    config = load(small, TuneConfig)
    builder = timing.Builder(CandidateParts(small, config), build(config.base))
    methods, _ = run.methods_here(builder, config)
    evalset, metric = build(config.evalset), build(builder.parts.metrics()[0])
    kept, _, tried = timing.runnable(builder, methods, evalset)
    protocol, quiet = run.LatencyProtocol.named("batch2_amortised"), run.Plain(quiet=True)
    for counted in (False, True):
        rates, cheap = timing.measured(builder, kept, tried, evalset, metric, protocol, counted, quiet)
        assert min(rates.vanilla, rates.extra, rates.candidate) > 0
        assert set(cheap) == {"reuse", "taylorseer"}
    assert 0 <= cheap["reuse"] < 0.2  # of FLOPs, the head's alone
