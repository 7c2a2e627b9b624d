"""Features, tokens and online: one reader, the same pairs, whatever is kept and wherever it is."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_parts import Watched, collected, contents, naming, text_base, tiny

import migm.collect
from migm.bases.base import Moment
from migm.config.building import build
from migm.config.roots import CollectConfig
from migm.runtime.errors import UserError
from migm.runtime.resources import readable
from migm.sampling.sampler import Sampler
from migm.training.run import Training
from migm.trajectories.dataset import InMemory, PairDataset
from migm.trajectories.estimate import TrainingWork
from migm.trajectories.record import packed, record, unpacked
from migm.trajectories.replay import with_features
from migm.trajectories.storage import Features
from migm.trajectories.store import Store

PROMPTS = ["a red truck", "a photo of a small blue bird on a branch", "sky"]


def config_for(output: Path, *overrides: str) -> CollectConfig:
    return tiny(output, *overrides, command="collect", root=CollectConfig)


def seen(asked: list[Moment]) -> set[tuple[float, int, int]]:
    """All mask ratios, with step and number of steps, that a base was asked at."""
    each = [zip(at.mask_ratio.tolist(), at.step.tolist(), strict=True) for at in asked]
    return {(*pair, at.num_steps) for at, pairs in zip(asked, each, strict=True) for pair in pairs}


def labels(images: torch.Tensor) -> torch.Tensor:
    return images % 10


def prompts(images: torch.Tensor) -> list[str]:
    return [PROMPTS[i % 3] for i in images.tolist()]


@pytest.mark.parametrize("kind", ["classes", "text, two passes", "text, one pass"])
def test_features_computed_from_tokens_are_those_of_the_sampling(kind, make_base, make_sampling):
    base = make_base(dtype="float32") if kind == "classes" else text_base(dtype="float32", one_pass="one pass" in kind)
    watched, inputs = Watched(base), labels if kind == "classes" else prompts
    chosen = (Sampler(watched, make_sampling()), torch.arange(5), 0, inputs, 2)
    kept, tokens = (record(*chosen, dtype) for dtype in (torch.float32, None))
    assert tokens.features.numel() == 0
    of_the_loop, watched.asked = seen(watched.asked), []
    stored, computed = PairDataset(InMemory(kept)), PairDataset(InMemory(tokens))
    every = torch.randperm(len(stored), generator=torch.Generator().manual_seed(0))
    for some in every.split(20):
        a, b = stored.__getitems__(some.tolist()), with_features(computed.__getitems__(some.tolist()), watched)
        branch = base.branch(b.conditions)
        mask = torch.ones(b.features.shape[:2], dtype=torch.bool) if branch.mask is None else branch.mask
        t = mask.shape[1]
        for name in ("features", "target"):
            torch.testing.assert_close(getattr(b, name)[mask], getattr(a, name)[:, :t][mask], rtol=1e-5, atol=1e-5)
        for name in ("tokens", "new", "masked", "steps", "halves", "images"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert seen(watched.asked) == of_the_loop


def test_neither_gradients_nor_the_training_precision_reach_the_base(make_base, make_sampling):
    base = make_base(dtype="float32")
    made = record(Sampler(base, make_sampling()), torch.arange(2), 0, labels, 2, None)
    batch = PairDataset(InMemory(made)).__getitems__([0, 7])
    base.transformer.requires_grad_(True)
    plain = with_features(batch, base)
    assert not plain.features.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(with_features(batch, base).features, plain.features)


def test_pairs_that_hold_features_stay_as_they_are(make_base, make_sampling):
    made = record(Sampler(make_base(), make_sampling()), torch.arange(2), 0, labels, 2, torch.float64)
    batch = PairDataset(InMemory(made)).__getitems__([0, 7])
    assert with_features(batch, None) is batch  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[str, tuple[Path, Store]]:
    """The tiny experiment's twelve images in each form a store can have."""
    overrides = {"features": [], "tokens": ["data/storage=tokens"], "int8": ["data.storage.dtype=int8"]}
    folders = {name: tmp_path_factory.mktemp(name) for name in overrides}
    return {name: (folders[name], collected(config_for(folders[name], *more))) for name, more in overrides.items()}


def test_a_store_of_tokens_holds_all_but_the_features(stores):
    features, tokens = (contents(stores[name][1]) for name in ("features", "tokens"))
    for name in ("tokens", "order", "conditions", "images"):
        assert torch.equal(features[name], tokens[name]), name
    assert tokens["features"].shape == (12, 2, 6, 0, 0)
    header = stores["tokens"][1].header
    assert header["storage"] == "tokens"
    assert "dtype" not in header


def test_features_in_8_bits_are_near(stores):
    exact, rough = (contents(stores[name][1])["features"] for name in ("features", "int8"))
    assert (rough.dtype, stores["int8"][1].header["dtype"]) == (torch.int8, "int8")
    assert rough.shape == (*exact.shape[:-1], exact.shape[-1] + 4)
    work = TrainingWork(12, 6, 2, 17, 48, 16, 1, 5, 0, 1.0)
    assert Features("int8").costs(work).disk == rough.nbytes
    near = exact.float().abs().amax(-1, keepdim=True) * (0.5 / 127 + 2**-8)
    assert ((unpacked(rough).float() - exact.float()).abs() <= near).all()
    a, b = (PairDataset(stores[name][1]).__getitems__([0, 33, 119]) for name in ("features", "int8"))
    assert b.features.shape == a.features.shape
    torch.testing.assert_close(b.target.float(), a.target.float(), rtol=0.02, atol=0.02)


def test_a_row_of_zeros_stays_one():
    rows = torch.tensor([[0.0, 0.0, 0.0], [-2.0, 1.0, 0.0]])
    assert torch.equal(unpacked(packed(rows, torch.int8))[0], torch.zeros(3, dtype=torch.bfloat16))
    assert unpacked(packed(rows, torch.int8))[1, 0] == -2


@pytest.mark.parametrize(
    ("held", "asked", "key"),
    [
        ("features", "data/storage=tokens", "storage=features"),
        ("tokens", "data/storage=features", "storage=tokens"),
        ("int8", "data.storage.dtype=bfloat16", "dtype=int8"),
    ],
)
def test_a_store_of_another_mode_is_refused(stores, held, asked, key):
    with pytest.raises(UserError, match=naming("data.folder", key)):
        collected(config_for(stores[held][0], asked, f"data.folder={stores[held][1].folder}"))


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        # 12 images, 2 halves, 6 steps, 17 rows, 48 channels; or 16 tokens and 2 labels
        ([], 12 * 2 * 6 * 17 * 48 * 2),
        (["data.storage.dtype=int8"], 12 * 2 * 6 * 17 * (48 + 4)),
        (["data/storage=tokens"], 12 * (16 * 4 + 16 * 2 + 2 * 4 + 8)),
    ],
)
def test_the_size_is_said_before_anything_is_written(tmp_path, capsys, monkeypatch, overrides, size):
    said = []

    def full(folder, number, *_):
        said.append(" ".join(capsys.readouterr().out.split()))
        assert number == size
        raise UserError("stop here")

    monkeypatch.setattr(migm.trajectories.collect, "refuse_full_disk", full)
    with pytest.raises(UserError, match="stop here"):
        collected(config_for(tmp_path, *overrides))
    assert f"collecting 12 trajectories: {readable(size)} into" in said[0]
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(("size", "words"), [(104, "104 bytes"), (86_400, "86.40 kB"), (8_930_000_000_000, "8.93 TB")])
def test_sizes_are_readable(size, words):
    assert readable(size) == words


def train(output: Path, *overrides: str, steps: int = 12) -> float:
    """One training as `migm.train` does it; returns the validation error."""
    config = tiny(output, f"trainer.max_steps={steps}", "lr_schedule.warmup_steps=2", *overrides)
    base = build(config.base)
    return Training(config, base).run(build(config.data))


def test_training_on_tokens_is_training_on_features(stores, tmp_path):
    errors = {}
    for name in ("features", "tokens"):
        errors[name] = train(tmp_path / name, f"data.folder={stores[name][1].folder}", f"data/storage={name}")
    assert errors["tokens"] == pytest.approx(errors["features"], rel=0.02)
    assert errors["tokens"] != errors["features"]  # bfloat16 against the base's own precision


def rounds_by_batch_size() -> bool:
    """Whether this CPU's matrix products of a row depend on how many rows there are."""
    rows, matrix = torch.randn(400, 48), torch.randn(48, 192)
    whole = rows @ matrix
    return any(not torch.equal(rows[:n] @ matrix, whole[:n]) for n in (1, 17, 34, 136))


def test_in_float32_tokens_give_the_features_bit_for_bit_and_the_same_weights(tmp_path):
    exact = ["base.dtype=float32"]
    modes = {"features": [*exact, "data.storage.dtype=float32"], "tokens": [*exact, "data/storage=tokens"]}
    kept, made = (collected(config_for(tmp_path, *more)) for more in modes.values())
    assert contents(kept)["features"].dtype == torch.float32
    base = build(config_for(tmp_path, *exact).base)
    stored, computed = PairDataset(kept), PairDataset(made)
    every = torch.randperm(len(stored), generator=torch.Generator().manual_seed(0))
    same = torch.equal if not rounds_by_batch_size() else partial(torch.allclose, rtol=1e-6, atol=1e-6)
    for some in every.split(8):
        a, b = stored.__getitems__(some.tolist()), with_features(computed.__getitems__(some.tolist()), base)
        assert same(a.features, b.features)
        assert same(a.target, b.target)
        assert all(torch.equal(x, y) for x, y in zip(a[2:9], b[2:9], strict=True))
        assert a[9:13] == b[9:13]
    errors = [
        train(tmp_path / name, f"paths.output_dir={tmp_path}", f"name={name}", *more, steps=50)
        for name, more in modes.items()
    ]
    first, second = (load_file(tmp_path / name / "shortcut.safetensors") for name in modes)
    assert errors[0] == pytest.approx(errors[1], rel=1e-6)
    assert all(same(first[name], second[name]) for name in first)
