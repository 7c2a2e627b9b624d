"""The typed root of every command's config."""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from migm.config.fitting import Component, PointEntry
from migm.runtime.device import DeviceName, DTypeName
from migm.runtime.kinds import (
    CostKind,
    Count,
    Filled,
    Latency,
    Length,
    Limits,
    NotNegative,
    Positive,
    Seed,
    Stage,
    Threads,
    Whole,
)

OF_TRAINING = frozenset({"data", "objective", "optimizer", "lr_schedule", "trainer", "callbacks", "logger.csv"})
OF_SCORES = frozenset({"metric", "inception"})


@dataclass
class Common:
    """Keys of every command."""

    draws_by_one: ClassVar[bool] = False  # whether `speed` and `quality` may choose the command's sampler
    # Keys of which the command builds nothing. Their classes are not checked: that would import Lightning and
    # torchmetrics, which takes longer than a short command's own work.
    unbuilt: ClassVar[frozenset[str]] = frozenset()

    name: Filled
    group: Filled
    seed: Seed
    num_threads: Threads | None
    device: DeviceName
    base: Any
    sampling: Any
    shortcut: Any
    accelerator: Any
    objective: Any
    optimizer: Any
    lr_schedule: Any
    data: Any
    evalset: Any
    metric: Any
    inception: Any
    runtime: Any
    trainer: Any
    callbacks: Any
    logger: Any
    paths: Any
    # Accelerator -> list of N, [N, B], or {num_steps, num_full_steps, <key of the accelerator>: value}. Without points,
    # `accelerator` and `sampling` choose the single one.
    points: dict[str, list[PointEntry]] | None = field(default_factory=dict)
    # Protocols of time and memory; empty: the amortised time of the evalset's batch.
    latency: list[Latency] = field(default_factory=list)
    # A point of the front takes the place of `accelerator`, N and B: see migm.config.by_front.
    speed: Positive | None = None
    quality: Positive | None = None
    front: str | None = None


@dataclass
class CollectConfig(Common):
    import_from: str | None = None  # a folder of the released code's tars to read instead of generating
    export_to: str | None = None  # a folder to write the store to, in the same layout
    publish_to: str | None = None  # a URL to copy the store to


@dataclass
class TrainConfig(Common):
    warm_start: str | None = None  # the file of a trained shortcut whose weights the training begins with
    collect: bool = True  # fill the trajectory store first
    evaluate: bool = True  # measure `points` afterwards
    cost: CostKind = True  # also measure their time, FFE and memory, or count FFE and caches alone
    report: bool = True  # write the report


@dataclass
class EvaluateConfig(Common):
    draws_by_one = True
    unbuilt = OF_TRAINING

    cost: CostKind = True  # also measure time, FFE and memory, or count FFE and caches alone


@dataclass
class ReportConfig(Common):
    unbuilt = OF_TRAINING | OF_SCORES

    results: list[str] = field(default_factory=list)
    folder: str = ""
    baseline: str = ""
    images: list[str] = field(default_factory=list)


@dataclass
class ImagesConfig(Common):
    """Keys of commands that make images of labels or prompts by seeds."""

    unbuilt = OF_TRAINING | OF_SCORES

    labels: Annotated[list[Whole], Length()] | None = None
    prompt: str | None = None
    prompts: str | None = None  # a file
    seeds: Annotated[list[Whole], Length()] | None = None
    batch_size: Count | None = None


@dataclass
class GenerateConfig(ImagesConfig):
    draws_by_one = True

    image: str | None = None
    mask: str | None = None
    output: str = ""
    folder: str | None = None


@dataclass
class SideBySideConfig(ImagesConfig):
    max_seconds: Positive | None = None  # within which rounds end
    note: str = ""
    folder: str = ""


@dataclass
class BenchConfig(Common):
    """Keys of the benchmark, each part of which reads some."""

    draws_by_one = True

    part: Literal["compute", "profile", "train", "loading", "waiting"] = "compute"
    compare: list[dict[str, Any]] = field(default_factory=list)  # overrides of each variant
    new_lengths: Whole = 3  # prompts of other lengths whose first run is timed
    max_seconds: Positive | None = None  # after which no measurement begins
    resume: bool = False  # rows that are in `output` are not measured again
    loading: Component = field(default_factory=dict)
    waiting: Component = field(default_factory=dict)
    batch_sizes: Annotated[list[Count], Length()] = field(default_factory=list)
    repeats: Count = 7
    output: str = ""


@dataclass
class AblationsConfig(Common):
    unbuilt = OF_TRAINING | OF_SCORES

    sweeps: list[str] = field(default_factory=list)
    reference: str = ""
    folder: str = ""


Images = Annotated[int, Limits(least=2)]
Span = Annotated[list[Positive], Length(2, 2)]  # least and most


@dataclass
class TuneConfig(Common):
    """Keys of a search for the best samplers in shares of vanilla's time; conf/tune.yaml says what each is."""

    unbuilt = OF_TRAINING

    budget: Positive = 20.0  # minutes
    shares: Annotated[list[Annotated[float, Limits(above=0, most=1)]], Length()] = field(default_factory=list)
    search_metric: Filled = "kd_cifarnet"
    methods: dict[str, dict[str, Any] | None] = field(
        default_factory=dict
    )  # accelerator -> its keys -> lists of values
    num_steps: Annotated[list[Count], Length()] | None = None
    first: Annotated[list[Count], Length(2, 2)] = field(default_factory=lambda: [1, 4])
    warp: Span = field(default_factory=lambda: [1.0, 1.0])
    sampler: dict[str, Any] = field(default_factory=dict)  # keys of the sampling -> least and most factor
    rungs: Annotated[list[Images], Length()] = field(default_factory=list)
    keep: Annotated[int, Limits(least=2)] = 3
    seed_sets: Annotated[list[Seed], Length()] = field(default_factory=list)
    predict: Literal["measured", "counted"] = "measured"
    optimiser: Literal["tpe", "random"] = "tpe"
    fair: bool = False
    verify_seed_sets: Annotated[list[Seed], Length()] = field(default_factory=list)
    verify_images: Images = 1000
    finalists: Count = 2


@dataclass
class CalibrateConfig(Common):
    unbuilt = OF_TRAINING | OF_SCORES

    num_images: Count = 64
    dtypes: list[DTypeName] = field(default_factory=list)
    batch_size: Count = 32
    output: str = ""


@dataclass
class PlaceConfig(Common):
    unbuilt = OF_TRAINING | OF_SCORES

    place: Component = field(default_factory=dict)


@dataclass
class PlanConfig(Common):
    draws_by_one = True
    unbuilt = OF_TRAINING | OF_SCORES

    full: Positive = 1.0
    cheap: NotNegative = 0.04


@dataclass
class AnalyseConfig(Common):
    draws_by_one = True
    unbuilt = OF_TRAINING | OF_SCORES

    analysis: str | list[str] = "all"
    analyses: dict[str, Component] = field(default_factory=dict)
    folder: str = ""


@dataclass
class HumanevalConfig(Common):
    unbuilt = OF_TRAINING | OF_SCORES

    method: str | None = None
    baseline: str | None = None
    num_pairs: Count | None = None
    question: str = ""
    url: str = ""
    folder: str = ""
    votes: list[str] = field(default_factory=list)


@dataclass
class MetricReferenceConfig(Common):
    images: str | None = None
    size: Count | None = None
    batch_size: Count = 50
    num_workers: Whole = 0


@dataclass
class PretrainConfig(Common):
    stages: list[Stage] = field(default_factory=list)
    pretrain: Component = field(default_factory=dict)
