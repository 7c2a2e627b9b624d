"""Memory beyond weights, against weights and the features of all branches."""

from types import SimpleNamespace

import pytest
import torch

from migm.accelerators.predictors.shortcut import Shortcut
from migm.benchmarks.memory import memory_jobs, networks, weight_bytes
from migm.sampling.sampler import Sampler


def test_weights_of_shared_storage_count_once():
    linear = torch.nn.Linear(4, 3, bias=False)
    tied = torch.nn.Linear(4, 3, bias=False)
    tied.weight = linear.weight
    assert weight_bytes([linear, tied]) == 4 * 12


def test_rows_hold_peak_weights_and_features_and_their_ratio(tiny_base, make_sampling, make_accelerator):
    vanilla = Sampler(tiny_base, make_sampling())
    accelerator = make_accelerator("shortcut")
    sampler = Sampler(tiny_base, make_sampling(), accelerator)
    variant = SimpleNamespace(
        vanilla=vanilla, base=tiny_base, samplers=[sampler], predictor=accelerator.predictor, source=lambda i: i % 10
    )
    with torch.inference_mode():
        rows = {part: job() for part, job in memory_jobs(variant, 3).items()}
    assert set(rows) == {"full", sampler.label}
    own = weight_bytes([tiny_base.transformer, tiny_base.tokenizer])
    assert isinstance(accelerator.predictor, Shortcut)
    assert rows["full"]["weights_bytes"] == own
    assert rows[sampler.label]["weights_bytes"] == own + weight_bytes([accelerator.predictor.module])
    assert len(networks(tiny_base)) == 2
    for row in rows.values():
        assert row["features_bytes"] == 2 * 3 * 17 * 48 * 8  # two halves, three images, 17 rows of 48 float64
        assert row["peak_bytes"] > row["features_bytes"]
        ratio = (row["weights_bytes"] + row["peak_bytes"]) / (row["weights_bytes"] + row["features_bytes"])
        assert row["of_weights_and_features"] == pytest.approx(ratio)
