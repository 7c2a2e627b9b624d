"""What a config may hold is said by annotations and checked before anything is built: key, value, what is allowed."""

import re
from functools import cache
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from test_config import ROOTS
from tiny_parts import ROOT, composed, naming

from migm.accelerators.calibration import LearnedWeights
from migm.accelerators.extrapolation import Hermite, Newton, Taylor
from migm.accelerators.predictors.dllm_cache import PromptResponse
from migm.accelerators.predictors.forecast import Forecast
from migm.accelerators.predictors.ml_cache import Subset
from migm.accelerators.predictors.reuse import Reuse
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Groups, Interval, Table, Uniform, WarmupInterval
from migm.accelerators.teacache import Accumulate
from migm.analyses.forks import Forks
from migm.bases.amused import AmusedVQ
from migm.bases.inputs import Classes
from migm.bases.vqgan import VQGAN
from migm.config.building import load
from migm.config.checks import check_arguments
from migm.config.fitting import fitted
from migm.metrics.image_reward import ImageReward
from migm.metrics.inception import FID
from migm.metrics.neighbours import Neighbours
from migm.metrics.networks.inception import load_inception
from migm.runtime.errors import UserError
from migm.shortcuts.dimoo import DiMOOShortcut
from migm.training.rollout import Rollout

NAN, INFINITE, HUGE = float("nan"), float("inf"), 2**63


@cache
def tree(command: str) -> DictConfig:
    return composed(command, "+experiment=tiny_shortcut", "device=cpu")


def loaded(command: str, key: str, value: Any) -> Any:
    """What a command makes of its tiny config with one value changed."""
    cfg = tree(command).copy()
    OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    return load(cfg, ROOTS[command])


def refused(command: str, key: str, value: Any) -> str:
    with pytest.raises(UserError) as error:
        loaded(command, key, value)
    assert "\n" not in str(error.value)
    return str(error.value)


OF_COMMANDS = [
    ("generate", "seeds", [HUGE], ["seeds[0]=9223372036854775808", "a whole number of at least 0", "64 bits"]),
    ("generate", "seeds", [0, -1], ["seeds[1]=-1", "at least 0"]),
    ("generate", "seeds", [1.5], ["seeds[0]=1.5", "a whole number"]),
    ("generate", "seeds", [None], ["seeds[0]=null", "a whole number"]),
    ("generate", "seeds", [True], ["seeds[0]=true", "a whole number"]),
    ("generate", "seeds", [], ["seeds=[]", "a list, each a whole number of at least 0, not empty or null"]),
    ("generate", "seeds", 3, ["seeds=3", "a list"]),
    ("generate", "labels", ["a"], ["labels[0]=a", "a whole number"]),
    ("generate", "batch_size", 0, ["batch_size=0", "at least 1 or null"]),
    ("generate", "prompt", True, ["prompt=true", "a text or null"]),
    ("generate", "device", "", ["device= is unknown", "known: auto, cpu, cuda"]),
    ("generate", "device", "gpu", ["device=gpu is unknown"]),
    ("generate", "device", "cdua", ["device=cdua is unknown; did you mean cuda?"]),
    ("generate", "seed", -1, ["seed=-1", "from 0 to 4294967295"]),
    ("generate", "seed", 2**32, ["seed=4294967296", "from 0 to 4294967295"]),
    ("generate", "seed", True, ["seed=true", "a whole number"]),
    ("generate", "num_threads", 0, ["num_threads=0", "from 1 to 4096 or null"]),
    ("generate", "name", "", ["name=", "a text, not empty"]),
    ("bench", "part", "x", ["part=x is unknown", "known: compute, loading"]),
    ("bench", "part", "lodaing", ["part=lodaing is unknown; did you mean loading?"]),
    ("bench", "batch_sizes", [4, 0], ["batch_sizes[1]=0", "at least 1"]),
    ("bench", "batch_sizes", [], ["batch_sizes=[]", "not empty"]),
    ("bench", "repeats", 0, ["repeats=0", "at least 1"]),
    ("bench", "loading", None, ["loading=null", "a group of keys with a _target_"]),
    ("evaluate", "latency", [5], ["latency[0]=5", "batch<b>_amortised", "batch1_wall", "_decode"]),
    ("evaluate", "latency", ["batch2_wall"], ["latency[0]=batch2_wall"]),
    ("evaluate", "points", {"vanilla": ["a"]}, ["points.vanilla[0]=a", "N, or [N, B]"]),
    ("evaluate", "points", {"vanilla": 4}, ["points.vanilla=4", "a list, each N, or [N, B]"]),
    ("evaluate", "points", {"vanilla": [[6]]}, ["points.vanilla[0]=[6]", "N, or [N, B]"]),
    ("evaluate", "points", {"vanilla": [[6, 0]]}, ["points.vanilla[0][1]=0", "at least 1"]),
    ("evaluate", "points", 4, ["points=4", "a group of keys or null"]),
    ("calibrate", "num_images", 0, ["num_images=0", "at least 1"]),
    ("humaneval", "num_pairs", 0, ["num_pairs=0", "at least 1 or null"]),
    ("plan", "full", 0, ["full=0", "a number above 0"]),
    ("plan", "full", NAN, ["full=nan", "a number above 0"]),
    ("plan", "cheap", -0.1, ["cheap=-0.1", "a number of at least 0"]),
    ("plan", "cheap", INFINITE, ["cheap=inf", "a number of at least 0"]),
    ("pretrain", "stages", ["bases"], ["stages[0]=bases is unknown; did you mean base?", "known: base, features"]),
    ("metric_reference", "size", 0, ["size=0", "at least 1 or null"]),
    ("train", "collect", "perhaps", ["collect=perhaps", "true or false"]),
]
OF_COMPONENTS = [
    ("evalset.seed_sets", [1, "a"], ["evalset.seed_sets[1]=a", "a whole number from 0 to 4294967295"]),
    ("evalset.seed_sets", [1.5], ["evalset.seed_sets[0]=1.5"]),
    ("evalset.seed_sets", [None], ["evalset.seed_sets[0]=null"]),
    ("evalset.seed_sets", [], ["evalset.seed_sets=[]", "not empty"]),
    ("evalset.inputs.num_classes", 0, ["evalset.inputs.num_classes=0", "at least 1"]),
    ("evalset.num_images", 1, ["evalset.num_images=1", "at least 2"]),
    ("evalset.batch_size", 0, ["evalset.batch_size=0", "at least 1"]),
    ("sampling.num_steps", True, ["sampling.num_steps=true", "a whole number"]),
    ("sampling.num_steps", 10**400, ["sampling.num_steps=1000", "a whole number", "64 bits"]),
    ("sampling.num_full_steps", 0, ["sampling.num_full_steps=0", "at least 1"]),
    ("sampling.select.temperature", -1, ["sampling.select.temperature=-1", "at least 0"]),
    ("sampling.select.temperature", NAN, ["sampling.select.temperature=nan", "a number"]),
    ("sampling.select.anneal", "cosine", ["sampling.select.anneal=cosine is unknown", "constant", "linear"]),
    ("sampling.select.dtype", "float16", ["sampling.select.dtype=float16 is unknown; did you mean bfloat16?"]),
    ("sampling.select.rule", "ties", ["sampling.select.rule=ties is unknown", "count, cutoff"]),
    ("sampling.draw.inverse_temperature", INFINITE, ["sampling.draw.inverse_temperature=inf"]),
    ("sampling.draw.inverse_temperature", 10**400, ["sampling.draw.inverse_temperature=1000"]),
    ("sampling.draw.dtype", "float8", ["sampling.draw.dtype=float8 is unknown", "bfloat16, float32, float64"]),
    ("sampling.guidance.guidance_scale", INFINITE, ["sampling.guidance.guidance_scale=inf", "a number"]),
    ("sampling.guidance.on", "tokens", ["sampling.guidance.on=tokens is unknown", "features, logits"]),
    ("sampling.schedule.mode", "cubic", ["sampling.schedule.mode=cubic is unknown", "arccos, cosine"]),
    ("sampling.schedule", "arccos", ["sampling.schedule=arccos", "a group of keys with a _target_"]),
    ("base.dtype", "float16", ["base.dtype=float16 is unknown", "auto, bfloat16, float32, float64"]),
    ("base.tokenizer_dtype", "int8", ["base.tokenizer_dtype=int8 is unknown", "null"]),
    ("base.transformer.channels", 0, ["base.transformer.channels=0", "at least 1"]),
    ("base.transformer.channels", HUGE, ["base.transformer.channels=9223372036854775808", "64 bits"]),
    ("data.storage", "feature", ["data.storage=feature must be a group of keys"]),
    ("data.storage.dtype", "float16", ["data.storage.dtype=float16 is unknown", "bfloat16, float32, int8"]),
    ("data.batch_size", 0, ["data.batch_size=0", "at least 1"]),
    ("data.num_val_images", 0, ["data.num_val_images=0", "at least 1"]),
    ("data.folder", None, ["data.folder=null", "a path"]),
    ("accelerator.policy.rule", "even", ["accelerator.policy.rule=even is unknown", "paper, reference"]),
    ("accelerator.predictor.dropout", 1, ["accelerator.predictor.dropout=1", "at least 0 and below 1"]),
    ("shortcut.depth", 0, ["shortcut.depth=0", "at least 1"]),
    ("shortcut.num_positions", -1, ["shortcut.num_positions=-1", "at least 0"]),
    ("objective.rows", "some", ["objective.rows=some is unknown", "all, masked"]),
    ("objective.kl_direction", "both", ["objective.kl_direction=both is unknown", "student_teacher, teacher_student"]),
    ("objective.kl_temperature", 0, ["objective.kl_temperature=0", "above 0"]),
    ("objective.mse_weight", -1, ["objective.mse_weight=-1", "at least 0"]),
    ("optimizer.lr", NAN, ["optimizer.lr=nan", "a number of at least 0"]),
    ("lr_schedule.decay", 0, ["lr_schedule.decay=0", "above 0 and of at most 1"]),
    ("lr_schedule.warmup_steps", 0, ["lr_schedule.warmup_steps=0", "at least 1"]),
    ("callbacks.guard.non_finite", "ignore", ["callbacks.guard.non_finite=ignore is unknown", "skip, stop"]),
    ("callbacks.checkpoint.keep", 0, ["callbacks.checkpoint.keep=0", "at least 1"]),
    ("trainer.precision", "bf61-mixed", ["trainer.precision=bf61-mixed is unknown; did you mean bf16-mixed?"]),
    ("trainer.max_steps", 0, ["trainer.max_steps=0", "at least 1"]),
    ("trainer.num_nodes", "two", ["trainer.num_nodes=two", "a whole number"]),
    ("paths.output_dir", "", ["paths.output_dir=", "not empty"]),
]


@pytest.mark.parametrize(("command", "key", "value", "words"), OF_COMMANDS)
def test_a_wrong_value_of_a_command_is_refused_by_its_key(command, key, value, words):
    assert re.match(naming(*words), refused(command, key, value))


@pytest.mark.parametrize(("key", "value", "words"), OF_COMPONENTS)
def test_a_wrong_value_of_a_component_is_refused_by_its_key(key, value, words):
    assert re.match(naming(*words), refused("train", key, value))


@pytest.mark.parametrize(
    ("target", "given", "words"),
    [
        (Interval, {"interval": 0}, ["at.interval=0", "at least 1"]),
        (Interval, {"interval": 4, "first_enhance": 0}, ["at.first_enhance=0", "at least 1"]),
        (WarmupInterval, {"warmup_ratio": -0.1, "refresh_interval": 5}, ["at.warmup_ratio=-0.1", "from 0 to 1"]),
        (WarmupInterval, {"warmup_ratio": 1.1, "refresh_interval": 5}, ["at.warmup_ratio=1.1", "from 0 to 1"]),
        (WarmupInterval, {"warmup_ratio": 0.3, "refresh_interval": 0}, ["at.refresh_interval=0"]),
        (Uniform, {"num_full_steps": 2, "rule": "even"}, ["at.rule=even is unknown", "paper, reference"]),
        (Table, {"steps": []}, ["at.steps=[]", "not empty"]),
        (Table, {"steps": [0, 1.5]}, ["at.steps[1]=1.5", "a whole number"]),
        (Groups, {"num_full_steps": 3, "u": -1}, ["at.u=-1", "at least 0"]),
        (Accumulate, {"delta": -0.1}, ["at.delta=-0.1", "at least 0"]),
        (Accumulate, {"delta": NAN}, ["at.delta=nan", "at least 0"]),
        (Accumulate, {"delta": 1, "indicator": "output"}, ["at.indicator=output is unknown", "first_block, input"]),
        (Accumulate, {"delta": 1, "coefficients": [1, "x"]}, ["at.coefficients[1]=x", "a number"]),
        (Taylor, {"max_order": -1}, ["at.max_order=-1", "at least 0"]),
        (Newton, {"max_order": -2}, ["at.max_order=-2", "at least 0"]),
        (LearnedWeights, {"calibration": "x", "num_steps": 6, "max_order": -1}, ["at.max_order=-1", "at least 0"]),
        (Hermite, {"max_order": 2, "scale": 0.0}, ["at.scale=0.0", "above 0 and below 1"]),
        (Hermite, {"max_order": 2, "scale": 1.0}, ["at.scale=1.0", "above 0 and below 1"]),
        (Forecast, {"rule": {"_target_": "x"}, "granularity": "layer"}, ["at.granularity=layer", "boundary, module"]),
        (Reuse, {"of": "tokens"}, ["at.of=tokens is unknown", "features, residual"]),
        (Shortcut, {"dropout": -0.1}, ["at.dropout=-0.1", "at least 0 and below 1"]),
        (Subset, {"cache_ratio": 1.1}, ["at.cache_ratio=1.1", "from 0 to 1"]),
        (PromptResponse, {"prompt_interval": 0}, ["at.prompt_interval=0", "at least 1"]),
        (PromptResponse, {"prompt_interval": 1, "transfer_ratio": 2}, ["at.transfer_ratio=2", "from 0 to 1"]),
        (
            VQGAN,
            {"ddconfig": {}, "n_embed": 1, "embed_dim": 1, "pixels": "max"},
            ["at.pixels=max", "clamp, floor, min_max"],
        ),
        (AmusedVQ, {"channels": [128, 0]}, ["at.channels[1]=0", "at least 1"]),
        (DiMOOShortcut, {"channels": 48, "depth": 0}, ["at.depth=0", "at least 1"]),
        (Rollout, {"max_length": 0}, ["at.max_length=0", "at least 1"]),
        (Classes, {"num_classes": 0}, ["at.num_classes=0", "at least 1"]),
        (Forks, {"num_forks": 1}, ["at.num_forks=1", "at least 2"]),
        (load_inception, {"feature": "96"}, ["at.feature=96 is unknown", "192, 2048, 64, 768"]),
        (FID, {"protocol": "val"}, ["at.protocol=val is unknown", "adm, clean, migm_paper, val50k"]),
        (Neighbours, {"quantity": "f1"}, ["at.quantity=f1 is unknown", "coverage, density, precision, recall"]),
        (Neighbours, {"k": 0}, ["at.k=0", "at least 1"]),
        (ImageReward, {"backend": "own"}, ["at.backend=own is unknown", "adapter, official"]),
    ],
)
def test_components_of_other_configs_say_by_annotations_what_they_take(target, given, words):
    with pytest.raises(UserError, match=naming(*words)):
        check_arguments("at.", target, given, whole=False)


@pytest.mark.parametrize(
    ("value", "hint", "made"),
    [
        (7, str, "7"),
        (2024, str | None, "2024"),
        ([7, "a"], list[str], ["7", "a"]),
        (7, int | str, 7),
        (16, load_inception.__annotations__["feature"] | int, 16),
        (2048, load_inception.__annotations__["feature"], "2048"),
        (3, float, 3),
        (None, int | None, None),
        ({"a": [1]}, dict[str, list[int]], {"a": [1]}),
    ],
)
def test_a_number_becomes_text_only_where_nothing_else_may_be(value, hint, made):
    found = fitted("key", value, hint)
    assert found == made
    assert type(found) is type(made)


def test_a_number_may_be_a_name_and_a_folder():
    assert loaded("generate", "name", 7).name == "7"
    assert loaded("generate", "prompt", 7).prompt == "7"
    assert loaded("train", "data.folder", 2024).data["folder"] == "2024"


def test_no_source_checks_by_hand_what_an_annotation_can_say():
    """Names of files' contents and of other libraries' choices are known while running only."""
    late = {"metrics/clip_score.py"}
    hand = re.compile(r"unknown.*; one of|must be at least \{?\d")
    sources = {path.relative_to(ROOT / "migm").as_posix(): path.read_text() for path in (ROOT / "migm").rglob("*.py")}
    assert {name for name, text in sources.items() if hand.search(text)} == late
