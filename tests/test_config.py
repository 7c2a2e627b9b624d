"""Every file of the config tree composes with every command, and every typo is refused by its key."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from placed_parts import is_placed, write_placed
from tiny_parts import naming

from migm.config.building import build, class_of, conf_path, load
from migm.config.earlier import RENAMED_KEYS, by_name, former_sampling
from migm.config.points import entries, points
from migm.config.roots import (
    AblationsConfig,
    AnalyseConfig,
    BenchConfig,
    CalibrateConfig,
    CollectConfig,
    Common,
    EvaluateConfig,
    GenerateConfig,
    HumanevalConfig,
    MetricReferenceConfig,
    PlaceConfig,
    PlanConfig,
    PretrainConfig,
    ReportConfig,
    SideBySideConfig,
    TrainConfig,
    TuneConfig,
)
from migm.reporting.sweep import grid
from migm.runtime.errors import UserError

CONF = Path(conf_path())
ROOTS: dict[str, type[Common]] = {
    "collect": CollectConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "ablations": AblationsConfig,
    "calibrate": CalibrateConfig,
    "place": PlaceConfig,
    "plan": PlanConfig,
    "report": ReportConfig,
    "generate": GenerateConfig,
    "side_by_side": SideBySideConfig,
    "bench": BenchConfig,
    "pretrain": PretrainConfig,
    "humaneval": HumanevalConfig,
    "metric_reference": MetricReferenceConfig,
    "analyse": AnalyseConfig,
    "tune": TuneConfig,
}
ADDED = ("experiment", "sweep", "storage", "launcher")  # with +, and with a package of their own


def options() -> list[str]:
    """`group=option` of every file in the tree, nested groups included."""
    files = [path.relative_to(CONF).with_suffix("") for path in sorted(CONF.rglob("*.yaml"))]
    return [
        f"{path.parent.as_posix()}={path.name}"
        for path in files
        if path.parent != Path() and path.parts[0] not in ADDED
    ]


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def tree() -> Iterator[None]:
    """Hydra once for the whole file: a start for each of many composes takes most of the time."""
    with initialize_config_dir(conf_path(), version_base="1.3"):
        yield


def test_every_command_has_a_root_and_every_root_a_file():
    assert {path.stem for path in CONF.glob("*.yaml")} == {*ROOTS, "common"}


def rounds() -> list[list[str]]:
    """Every option once, in rounds of one of each group that still has some: few composes see all.

    Groups inside a group have rounds of their own, since what a file of the outer one says of them may not fit.
    """
    found = []
    for nested in (False, True):
        chosen = [option for option in options() if ("/" in option) is nested]
        groups = [list(each) for _, each in itertools.groupby(chosen, lambda option: option.partition("=")[0])]
        found += [[option for option in each if option] for each in itertools.zip_longest(*groups)]
    return found


def share(command: str, everything: list) -> list:
    """All for `train`, and for every other command a part: they differ in a few keys of their own only."""
    others = [name for name in ROOTS if name != "train"]
    return everything if command == "train" else everything[others.index(command) :: len(others)]


@pytest.mark.parametrize("command", ROOTS)
def test_every_option_composes_and_every_command_takes_options(command):
    for chosen in share(command, rounds()):
        check_options(command, chosen)


@pytest.mark.slow
@pytest.mark.parametrize("command", ROOTS)
def test_every_option_of_every_group_composes_with_every_command(command):
    for chosen in rounds():
        check_options(command, chosen)


@pytest.mark.slow
def test_every_option_composes_alone():
    for option in options():
        check_options("train", [option])


def check_options(command: str, chosen: list[str]) -> None:
    own = {"analyse": "analyses=", "pretrain": "pretrain="}  # groups of one command
    chosen = [option for option in chosen if not any(option.startswith(g) for c, g in own.items() if c != command)]
    cfg = compose(command, chosen)
    assert load(cfg, ROOTS[command]).name
    for option in chosen:
        group, _, name = option.partition("=")
        node = OmegaConf.select(cfg, group.replace("/", "."))
        assert node is not None, option
        alone = OmegaConf.load(CONF / group / f"{name}.yaml")
        assert set(alone) - {"defaults"} <= set(node), option


@pytest.mark.parametrize("command", ROOTS)
def test_every_experiment_composes_and_every_command_takes_some(command):
    check_experiments(command, share(command, names("experiment")))


@pytest.mark.slow
@pytest.mark.parametrize("command", ROOTS)
def test_every_experiment_composes_with_every_command(command):
    check_experiments(command, names("experiment"))


def check_experiments(command: str, chosen: list[str]) -> None:
    for experiment in chosen:
        config = load(compose(command, [f"+experiment={experiment}"]), ROOTS[command])
        assert config.name == experiment
        assert config.points


@pytest.mark.parametrize("base", names("base"))
def test_the_sampling_follows_the_base(base):
    cfg, other = compose("train", [f"base={base}"]), "tiny" if base != "tiny" else "cifar10"
    assert cfg.sampling == compose("train", [f"base={other}", f"sampling={base}"]).sampling
    node = OmegaConf.to_container(cfg.base, resolve=True)
    with torch.device("meta"):
        assert cfg.shortcut.channels == class_of(node).parts(node).channels


@pytest.mark.parametrize("sweep", [name for name in names("sweep") if name != "pareto"])
def test_sweeps_compose_with_the_main_experiment(sweep):
    own = OmegaConf.load(CONF / "sweep" / f"{sweep}.yaml").hydra.sweeper.params
    command = "evaluate" if sweep == "n_by_b" else "train"
    chosen = ["+experiment=cifar10_shortcut", f"+sweep={sweep}"]
    cfg = compose(command, [*chosen, *(["seed=0"] if "seed" in own else [])], return_hydra_config=True)
    assert cfg.hydra.mode.name == "MULTIRUN"
    assert cfg.hydra.sweeper.params == own
    names = set()
    for over in grid(cfg):  # with one seed, which only says the same of fewer trials
        trial = compose(command, [*over, "hydra.mode=MULTIRUN"], return_hydra_config=True)
        choices = trial.hydra.runtime.choices
        names.add(trial.name)
        assert choices.sweep == sweep
        for key in own:
            group = key.removeprefix("+")
            given = next(text.partition("=")[2] for text in over if text.partition("=")[0] == key)
            assert str(choices.get(group) or OmegaConf.select(trial, group)).lower() == given.lower()
    if command == "train":  # weights differ, so folders must
        assert len(names) == len(grid(cfg))
        assert all(name.startswith(f"cifar10_shortcut/{sweep}/") for name in names)
        config = load(compose(command, chosen), TrainConfig)  # without a job the choices are not known
        assert config.points is None
        assert config.name.startswith("migm/migm/")


@pytest.mark.parametrize("launcher", names("launcher"))
def test_launchers_compose_with_a_sweep(launcher):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher")
    chosen = ["+experiment=cifar10_shortcut", "+sweep=ablation_rd", f"+launcher={launcher}"]
    assert launcher.split("_")[0] in compose("train", chosen, return_hydra_config=True).hydra.launcher._target_


def test_the_pareto_sweep_composes():
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    cfg = compose("evaluate", ["+experiment=cifar10_shortcut", "+sweep=pareto"], return_hydra_config=True)
    assert cfg.hydra.sweeper.direction == ["minimize", "minimize"]
    assert cfg.hydra.sweeper.storage == "sqlite:///outputs/cifar10_shortcut/pareto.db"
    assert load(compose("evaluate", ["+experiment=cifar10_shortcut", "+sweep=pareto"]), EvaluateConfig).points is None


def test_inference_sweeps_measure_the_swept_point():
    """`points` would win over the swept N and B; the sweep has to leave it empty."""
    chosen = ["+experiment=cifar10_shortcut", "+sweep=n_by_b", "sampling.num_steps=12", "sampling.num_full_steps=3"]
    config = load(compose("evaluate", chosen), EvaluateConfig)
    assert not config.points
    assert config.accelerator["policy"]["num_full_steps"] == 3


@pytest.mark.parametrize("metric", [name for name in names("metric") if name != "none"])
def test_a_metric_file_defines_one_key_named_as_the_file(metric):
    assert list(OmegaConf.load(CONF / "metric" / f"{metric}.yaml")) == [metric]


def test_metrics_combine():
    assert set(compose("train", ["metric=[class_agreement]"]).metric) == {"class_agreement"}
    assert set(compose("train", ["metric=[fd_cifarnet,class_agreement]"]).metric) == {"fd_cifarnet", "class_agreement"}


@pytest.mark.parametrize("accelerator", [name for name in names("accelerator") if name != "auto"])
def test_a_point_swaps_accelerator_n_and_b_and_nothing_else(accelerator, tmp_path):
    if is_placed(accelerator):
        write_placed(tmp_path / "migm", accelerator, 9, [3])
    where = f"paths.output_dir={tmp_path}"
    chosen = ["accelerator=reuse", "sampling.select.temperature=3", f"+points.{accelerator}=[[9,3]]", where]
    cfg = compose("evaluate", chosen)
    before, config = OmegaConf.to_container(cfg, resolve=True), load(cfg, EvaluateConfig)
    (entry,) = entries(cfg, config)
    assert entry.accelerator["name"] == accelerator
    assert (entry.num_steps, entry.num_full_steps, entry.changes) == (9, 3, {})
    own = load(
        compose("evaluate", [f"accelerator={accelerator}", "sampling.num_steps=9", "sampling.num_full_steps=3", where]),
        EvaluateConfig,
    )
    assert entry.accelerator == own.accelerator
    if "num_full_steps" in entry.accelerator["policy"]:  # ML-Cache's and vanilla's follow from N
        assert entry.accelerator["policy"]["num_full_steps"] == 3
        ((sampling, made, named, *_),) = points(cfg, config)
        assert sampling == build({**config.sampling, "num_steps": 9, "num_full_steps": 3})
        assert (sampling.select.temperature, made.name, named) == (3, accelerator, "")
        assert sum(made.plan(9)) == 3
    assert OmegaConf.to_container(cfg, resolve=True) == before


def test_points_of_one_accelerator_differ_in_n_b_and_changed_keys():
    listed = "[[9,3],{num_steps: 6, num_full_steps: 2, predictor.of: residual}]"
    cfg = compose("evaluate", [f"+points.reuse={listed}", "+points.l2p=[[12,4]]"])
    first, second, l2p = points(cfg, load(cfg, EvaluateConfig))
    assert [(c.sampling.num_steps, c.sampling.num_full_steps) for c in (first, second, l2p)] == [
        (9, 3),
        (6, 2),
        (12, 4),
    ]
    assert [c.accelerator.policy.num_full_steps for c in (first, second, l2p)] == [3, 2, 4]
    assert [c.accelerator.predictor.of for c in (first, second)] == ["features", "residual"]
    assert (first.variant, second.variant) == ("", "of=residual")
    assert l2p.accelerator.predictor.rule.num_steps == 12
    assert l2p.accelerator.predictor.rule.calibration.endswith("calibration_n12.safetensors")


def test_a_point_of_the_chosen_accelerator_has_its_overrides():
    cfg = compose("evaluate", ["accelerator=taylorseer", "accelerator.policy.interval=3", "+points.taylorseer=[9]"])
    (chosen,) = points(cfg, load(cfg, EvaluateConfig))
    assert chosen.accelerator.policy.interval == 3


def test_a_changed_key_that_a_points_accelerator_lacks_is_refused_naming_it():
    cfg = compose("evaluate", ["+points.reuse=[{num_steps: 6, policy.num_ful_steps: 2}]"])
    with pytest.raises(UserError, match=naming("accelerator.policy.num_ful_steps", "num_full_steps")):
        points(cfg, load(cfg, EvaluateConfig))


def test_a_point_of_an_unknown_accelerator_names_the_nearest():
    cfg = compose("evaluate", ["+points.shortcutt=[[9,3]]"])
    with pytest.raises(UserError, match=naming("points", "shortcutt", "did you mean shortcut?")):
        points(cfg, load(cfg, EvaluateConfig))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+sede=3", ["sede", "did you mean seed?"]),
        ("+shortcut.depht=2", ["shortcut.depht", "did you mean depth?"]),
        ("+base.transformer.chanels=2", ["base.transformer.chanels", "did you mean channels?"]),
        ("+sampling.draw.dtipe=float32", ["sampling.draw.dtipe", "did you mean dtype?"]),
        ("+accelerator.policy.num_ful_steps=2", ["accelerator.policy.num_ful_steps", "num_full_steps"]),
        ("+optimizer.learning_rate=2", ["optimizer.learning_rate"]),
        ("+trainer.max_step=2", ["trainer.max_step", "did you mean max_steps?"]),
        ("~shortcut.channels", ["shortcut.channels", "missing"]),
        ("shortcut._target_=migm.shortcuts.maskgit.Nope", ["shortcut._target_", "Nope"]),
        ("seed=abc", ["seed", "abc"]),
        ("seed=1.5", ["seed", "1.5"]),
        ("num_threads=many", ["num_threads", "many"]),
        ("collect=perhaps", ["collect", "perhaps"]),
        ("name=null", ["name"]),
        ("seed=???", ["seed"]),
        ("paths.output_dir=${nowhere}", ["nowhere"]),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name(override, words):
    with pytest.raises(UserError, match=naming(*words)):
        load(compose("train", [override]), TrainConfig)


@pytest.mark.parametrize("sign", ["", "+", "++"])
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.dtype=int8", ["data.dtype", "data.storage.dtype", "data/storage=features_int8"]),
        ("data.reuse=2", ["data.reuse", "data.storage.reuse", "data/storage=online"]),
        ("data.cache=there", ["data.cache", "data.source.cache", "data/source=url"]),
        ("data.cache_bytes=1", ["data.cache_bytes", "data.source.cache_bytes", "data/source=url"]),
        ("data.num_image=2", ["data.num_image", "did you mean num_images?"]),
        ("data.storage.reuse=2", ["data.storage.reuse", "unknown"]),
    ],
)
def test_a_key_of_data_that_was_renamed_or_mistyped_leads_to_its_name(sign, override, words):
    with pytest.raises(UserError, match=naming(*words)):
        load(compose("train", [sign + override]), TrainConfig)


def test_every_new_name_of_a_key_is_one_that_this_version_takes():
    chosen = ["data/storage=online", "data.storage.reuse=2", "data.storage.dtype=float32"]
    chosen += ["data/source=url", "data.source.cache=there", "data.source.cache_bytes=1"]
    config = load(compose("train", chosen), TrainConfig)
    for text in RENAMED_KEYS.values():
        for key in re.findall(r"\bdata(?:\.\w+)+", text):
            node = {"data": config.data}
            for part in key.split("."):
                node = node[part]
    files = {name for text in RENAMED_KEYS.values() for name in re.findall(r"data/[\w]+=\w+", text)}
    assert files <= set(options())


def test_a_sampler_s_order_of_all_masked_positions_is_what_configs_meant_before_they_named_it():
    now = load(compose("train", ["objective=rollout"]), TrainConfig)
    before = {key: value for key, value in now.sampling.items() if key != "order"}
    assert former_sampling(now.sampling) == former_sampling(before)
    assert by_name(now.sampling) == by_name(before)
    assert "order" not in by_name(now.objective)["rollout"]
    halton = {**before, "order": {"_target_": "migm.sampling.order.Halton", "roll": False}}
    assert by_name(halton) != by_name(before)


def test_values_below_the_old_group_of_storages_lead_to_the_new_one():
    for override in ("+storage.dtype=int8", "++storage.reuse=2"):
        with pytest.raises(UserError, match=naming("storage", "data/storage=<name>", "+storage=<name>")):
            load(compose("train", [override]), TrainConfig)
    assert load(compose("train", ["+storage=tokens"]), TrainConfig).data["storage"]["name"] == "tokens"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("shortcut=nope", ["shortcut/nope", "maskgit"]),
        ("base=nope", ["base/nope", "cifar10"]),
        ("sampling/draw=nope", ["sampling/draw/nope", "inverse_cdf"]),
        ("+experiment=nope", ["experiment/nope", "tiny_shortcut"]),
        ("sede=3", ["sede"]),
        ("shortcut.depht=2", ["depht"]),
    ],
)
def test_hydra_refuses_unknown_options_and_overrides_by_name(override, words):
    with pytest.raises(HydraException) as caught:
        compose("train", [override])
    message = f"{caught.value} {caught.value.__cause__}"
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sede: 3\n", ["sede", "did you mean seed?"]),
        ("shortcut: {depht: 2}\n", ["shortcut.depht", "did you mean depth?"]),
        ("trainer: {max_step: 2}\n", ["trainer.max_step"]),
    ],
)
def test_a_typo_in_an_experiment_file_is_refused_by_its_key(tmp_path, text, words):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\n" + text)
    cfg = compose("train", [f"hydra.searchpath=[file://{tmp_path}]", "+experiment=mine"])
    with pytest.raises(UserError, match=naming(*words)):
        load(cfg, TrainConfig)


def test_keys_of_one_command_are_unknown_to_another():
    with pytest.raises(UserError, match="collect"):
        load(compose("train"), EvaluateConfig)


@pytest.fixture
def multirun(monkeypatch) -> None:
    """What HydraConfig says inside a multirun, with no outside launcher."""
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    cfg = compose("train", ["hydra.mode=MULTIRUN"], return_hydra_config=True)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.masked_copy(cfg, ["hydra"]))


PARALLEL = ["trainer.devices=2", "trainer.num_nodes=2", "trainer.devices=-1", "trainer.devices=[0,1]"]
PARALLEL += ["trainer.devices=auto", "trainer.devices='2'"]


@pytest.mark.parametrize("override", PARALLEL)
def test_a_multirun_over_several_processes_is_refused(multirun, override):
    with pytest.raises(UserError, match=naming("trainer.devices", "multirun")):
        load(compose("train", [override]), TrainConfig)


@pytest.mark.parametrize("override", PARALLEL)
def test_outside_a_multirun_several_processes_are_fine(override):
    load(compose("train", [override]), TrainConfig)


def test_commands_that_do_not_train_ignore_the_trainers_devices(multirun):
    load(compose("evaluate", ["trainer.devices=2"]), EvaluateConfig)


@pytest.mark.parametrize("override", ["trainer.devices=1", "trainer.devices=[0]", "trainer.devices='1'"])
def test_a_multirun_on_one_device_is_fine(multirun, override):
    load(compose("train", [override]), TrainConfig)


def test_an_outside_launcher_may_run_trials_on_several_devices(multirun, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    load(compose("train", ["trainer.devices=2"]), TrainConfig)


def test_a_constructors_refusal_comes_out_as_itself():
    config = load(compose("train", ["base=tiny", "base.transformer.num_heads=5"]), TrainConfig)
    with pytest.raises(ValueError, match=r"^base\.transformer\.channels=48 must be a multiple of"):
        build(config.base)


def test_ranks_that_each_run_a_sweeper_of_their_own_need_a_grid(multirun, monkeypatch):
    """Optuna's ranks would disagree; trials that submitit started do not run the sweeper."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    hydra = HydraConfig.get()
    with open_dict(hydra):
        hydra.sweeper._target_ = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
        with pytest.raises(UserError, match=naming("2 processes", "OptunaSweeper", "submitit")):
            load(compose("train", ["trainer.devices=2"]), TrainConfig)
        hydra.launcher._target_ = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
        load(compose("train", ["trainer.devices=2"]), TrainConfig)


def test_other_launchers_start_no_ranks(multirun):
    hydra = HydraConfig.get()
    for name in ("hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "hydra_submitit_launcher.x.LocalLauncher"):
        with open_dict(hydra):
            hydra.launcher._target_ = f"hydra_plugins.{name}"
        with pytest.raises(UserError, match=naming("trainer.devices=2", "multirun")):
            load(compose("train", ["trainer.devices=2"]), TrainConfig)


@pytest.mark.parametrize(("said", "offline"), [("1", True), ("true", True), ("On", True), ("0", False), ("", False)])
def test_a_switch_of_the_environment_is_read_in_usual_words(monkeypatch, said, offline):
    monkeypatch.setenv("MIGM_OFFLINE", said)
    assert load(compose("train", []), TrainConfig).paths["offline"] is offline


def test_another_word_for_a_switch_is_refused_by_its_variable(monkeypatch):
    monkeypatch.setenv("MIGM_OFFLINE", "maybe")
    with pytest.raises(UserError, match=r"MIGM_OFFLINE=maybe should be one of 1, true, yes, on, 0, false, no, off"):
        load(compose("train", []), TrainConfig)


def test_an_interpolation_of_nothing_is_refused_by_its_key_also_where_a_group_has_files():
    cfg = compose("train", [])
    cfg.sampling.guidance = "${nowhere}"
    with pytest.raises(UserError, match=r"^sampling.guidance: .*nowhere"):
        load(cfg, TrainConfig)
