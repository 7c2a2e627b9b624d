"""Whole runs of the original ML-Cache samplers, replayed with their recorded uniforms."""

import pytest
import torch
from test_dimoo_sampling import replay

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.ml_cache import Subset
from migm.accelerators.refresh import WarmupInterval
from migm.accelerators.runners import KeyValues


@pytest.fixture
def computed(monkeypatch):
    """The rows of every partial pass, as lists of one list a sequence, without those that are not kept."""
    seen, run_rows = [], KeyValues.run_rows

    def watched(self, blocks, x, ctx, rows, keep=None):
        kept = torch.ones_like(rows, dtype=torch.bool) if keep is None else keep
        seen.append([sorted(row[k].tolist()) for row, k in zip(rows, kept, strict=True)])
        return run_rows(self, blocks, x, ctx, rows, keep)

    monkeypatch.setattr(KeyValues, "run_rows", watched)
    return seen


@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize(("name", "rule"), [("lumina_mlcache", "cutoff"), ("migm_mlcache", "count")])
def test_ml_cache_runs_are_reproduced_step_by_step(read_vector, recorded_dimoo, computed, name, rule, one_pass):
    tensors, meta = read_vector(f"dimoo_sample_{name}")
    base = recorded_dimoo(f"dimoo_sample_{name}", one_pass=one_pass)
    policy = WarmupInterval(float(meta["warmup_ratio"]), int(meta["refresh_interval"]))
    records = replay(base, tensors, meta, Accelerator(policy, Subset(float(meta["cache_ratio"]))), rule=rule)
    cheap = [record.index for record in records if not record.is_full]
    assert cheap == sorted(int(key.split(".")[1]) for key in tensors if key.startswith("compute_cond."))
    chosen = iter([rows for rows_of_pass in computed for rows in rows_of_pass])
    for step in cheap:
        for half in ("cond", "uncond"):
            assert next(chosen) == tensors[f"compute_{half}.{step:02d}"][0].nonzero()[:, 0].tolist(), (step, half)
    assert next(chosen, None) is None
