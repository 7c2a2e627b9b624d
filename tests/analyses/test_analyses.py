"""Every analysis draws its figure and gives the numbers that its parts are worked out to be."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_parts import composed, moment, naming, text_base

from migm.analyses.feature_error import FeatureError
from migm.analyses.forks import principal, spread
from migm.analyses.images import MethodGrid
from migm.analyses.layers import LayerSimilarity, layer_outputs
from migm.analyses.lipschitz import distances
from migm.analyses.recording import RowTrajectories, Setting
from migm.analyses.running import run as analyse
from migm.analyses.trajectories import embedded
from migm.bases.inputs import Classes, Prompts
from migm.config.building import load
from migm.config.points import points
from migm.config.roots import AnalyseConfig
from migm.runtime.errors import UserError
from migm.sampling.sampler import Sampler

TINY = ["+experiment=tiny_shortcut", "device=cpu", "~points.shortcut", "analyses.trajectories.perplexity=5"]
TINY += ["analyses.forks.fork_steps=[1,3]", "analyses.lipschitz.fork_steps=[1,3]", "analyses.images.repeats=1"]
TINY += [f"analyses.{name}.num_images=3" for name in ("trajectories", "lipschitz", "layers", "feature_error", "images")]


def analysed(folder: Path, *overrides: str) -> Path:
    cfg = composed("analyse", *TINY, f"paths.output_dir={folder}", f"folder={folder / 'figures'}", *overrides)
    config = load(cfg, AnalyseConfig)
    analyse(config, points(cfg, config))
    return folder / "figures"


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> Path:
    return analysed(tmp_path_factory.mktemp("analyses"))


def numbers(figures: Path, name: str) -> dict[str, Any]:
    return json.loads((figures / f"{name}.json").read_text())


@pytest.mark.parametrize("name", ["trajectories", "forks", "lipschitz", "layers", "feature_error", "images"])
def test_there_is_a_figure_and_its_numbers(figures, name):
    with Image.open(figures / f"{name}.png") as image:
        assert min(image.size) > 200
        assert len(image.convert("RGB").getcolors(10**6)) > 20
    assert numbers(figures, name)["about"]["num_steps"] == 6


def test_steps_far_apart_are_less_alike_than_neighbours(figures):
    found = numbers(figures, "trajectories")
    assert len(found["consecutive_steps"]) == 5
    assert 1 > found["mean_of_consecutive"] > found["mean_four_apart"] > found["first_and_last"]


def test_full_steps_have_no_error_and_reuse_has_that_of_features_that_stand_still(figures):
    found = numbers(figures, "feature_error")["reuse 6,2"]
    assert [error == 0 for error in found] == [True, False, False, True, False, False]


def test_the_first_point_is_what_others_are_compared_with(figures):
    found = numbers(figures, "images")
    assert list(found["ffe"]) == ["vanilla 2", "vanilla 6", "reuse 6,2"]
    assert found["ffe"]["vanilla 6"] == 6
    assert found["speed_up"]["vanilla 2"] == 1
    assert found["speed_up"]["vanilla 6"] < 1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("analysis=nope", ["analysis=nope", "trajectories, forks"]),
        ("analysis=[]", ["analysis="]),
        ("analyses.forks.fork_steps=[5]", ["fork_steps=[5]", "0 to 4"]),
        ("analyses.forks.num_forks=1", ["num_forks=1"]),
        ("analyses.trajectories.perplexity=99", ["perplexity=99", "18"]),
    ],
)
def test_settings_that_cannot_work_are_refused_by_key(tmp_path, override, words):
    alone = [f"analysis={override.split('.')[1]}"] if override.startswith("analyses") else []
    with pytest.raises(UserError, match=naming(*words)):
        analysed(tmp_path, override, *alone)


@pytest.mark.parametrize("name", ["feature_error", "images"])
def test_analyses_that_compare_need_points(tiny_base, make_sampling, tmp_path, name):
    kind = {"feature_error": FeatureError, "images": MethodGrid}[name]
    with pytest.raises(UserError, match=naming(f"analysis={name}", "points")):
        kind().run(Setting(Sampler(tiny_base, make_sampling()), Classes(10), [], 0), tmp_path / "a.png")


def test_spread_is_in_units_of_the_step():
    """Three runs that part at right angles after a step of length 2."""
    features = torch.zeros(3, 3, 1, 4)
    features[:, 1, 0, 0] = 1.0
    for run in range(3):
        features[run, 2, 0] = torch.eye(4)[run + 1] * math.sqrt(3) + torch.tensor([1.0, 0, 0, 0]) * 2
    assert spread(features, 1) == pytest.approx(math.sqrt(6) / 2)
    assert spread(features, 0) == 0


def test_principal_components_keep_distances_of_what_lies_in_a_plane():
    source = torch.Generator().manual_seed(0)
    plane = torch.randn(4, 5, 2, generator=source) * torch.tensor([5.0, 1.0])
    axes = torch.linalg.qr(torch.randn(30, 2, generator=source))[0]
    places, shares = principal(plane @ axes.T + 7)
    assert torch.allclose(torch.cdist(places, places), torch.cdist(plane, plane), atol=1e-4)
    assert float(shares[:2].sum()) == pytest.approx(1, abs=1e-5)
    assert shares[0] > shares[1]


def test_distances_are_of_features_and_tokens_before_and_of_features_after():
    zero = RowTrajectories(torch.zeros(1, 3, 1, 2), torch.zeros(1, 3, 1, 2))
    other = RowTrajectories(torch.zeros(1, 3, 1, 2), torch.zeros(1, 3, 1, 2))
    other.features[0, 1:, 0, 0] = torch.tensor([3.0, 12.0])
    other.revealed[0, :, 0, 1] = torch.tensor([1.0, 4.0, 99.0])
    inputs, outputs = distances(zero, other)
    assert (inputs.tolist(), outputs.tolist()) == ([[1.0, 5.0]], [[3.0, 12.0]])


def test_layers_are_those_of_the_base_and_masked_rows_start_alike(tiny_base, make_sampling, tmp_path):
    found = LayerSimilarity(2).run(Setting(Sampler(tiny_base, make_sampling()), Classes(10), [], 0), tmp_path / "a.png")
    assert len(found["by_layer"]) == tiny_base.spec.num_layers + 1
    assert found["by_layer_masked"][0] == pytest.approx(1, abs=1e-5)
    assert found["by_layer_masked"][1] < 1 - 1e-6
    assert found["by_layer"][0] < 1 - 1e-4


def test_the_last_layer_s_output_makes_the_features(tiny_base):
    tokens = torch.randint(0, 24, (2, 16))
    branch = tiny_base.encode(torch.tensor([1, 2]), guided=False)[0]
    outputs = layer_outputs(tiny_base, tokens, branch, moment(torch.ones(2)))
    x, ctx = tiny_base.prepare(tokens, branch, moment(torch.ones(2)))
    features = tiny_base.features(tokens, branch, moment(torch.ones(2)))
    assert torch.equal(tiny_base.finalize(outputs[-1], ctx), features)
    assert torch.equal(outputs[0], x)
    assert len(outputs) == 3


def test_the_text_base_has_layers_and_errors_of_both_branches(make_sampling, make_accelerator, tmp_path):
    base, prompts = text_base(), tmp_path / "prompts.txt"
    prompts.write_text("a red truck\na cat\n")
    vanilla = Sampler(base, make_sampling())
    known = Setting(vanilla, Prompts(prompts), [Sampler(base, make_sampling(), make_accelerator("reuse"))], 0)
    assert len(LayerSimilarity(2).run(known, tmp_path / "a.png")["by_layer"]) == 3
    (label, errors), *_ = FeatureError(2).run(known, tmp_path / "b.png").items()
    assert label == "reuse 6,2"
    assert [error > 0 for error in errors] == [False, True, True, False, True, True]


def test_tokens_before_a_step_are_those_after_the_one_before(tiny_base, run, make_accelerator):
    _, records = run(make_accelerator("vanilla"))
    mask = tiny_base.spec.vocab_size
    assert (records[0].tokens_before(mask) == mask).all()
    for earlier, later in pairwise(records):
        assert torch.equal(later.tokens_before(mask), earlier.tokens)


def test_t_sne_keeps_far_clouds_apart():
    clouds = (
        torch.randn(3, 12, 8, generator=torch.Generator().manual_seed(0))
        + torch.eye(3)[:, None].repeat(1, 1, 3)[..., :8] * 40
    )
    places = embedded(clouds, 5.0, 0)
    centres = places.mean(1)
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1)[~np.eye(3, dtype=bool)].min()
    assert apart > 2 * np.linalg.norm(places - centres[:, None], axis=-1).mean()
