"""Prints, as JSON lines, how compiled training steps compare with plain ones; a process of its own.

See `compiled_equality.py` of the sampling tests for why, and for `backend`; `base_kinds.py` has the bases and rules.
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "sampling"))

from base_kinds import KINDS
from compiled_equality import with_backend  # type: ignore[import-not-found]

from migm.bases.base import Base
from migm.evaluation.cost import num_compiled
from migm.runtime.compiling import as_it_is, compiled
from migm.sampling.loop import Sampling
from migm.sampling.sampler import Sampler
from migm.training.objective import FeatureLoss, Mixture, made_ready
from migm.training.rollout import Rollout
from migm.training.terms.guided_kl import GuidedKL
from migm.training.terms.marginal import Marginal
from migm.training.terms.squared_error import SquaredError
from migm.trajectories.dataset import InMemory, PairDataset, Pairs
from migm.trajectories.gaps import Gaps
from migm.trajectories.record import record
from migm.trajectories.replay import with_features


def objectives(sampling: Sampling) -> dict[str, Mixture]:
    rules = {name: getattr(sampling, name) for name in ("num_steps", "schedule", "draw", "select")}
    return {
        "mse": FeatureLoss(),
        "mse_kl": FeatureLoss(kl_weight=0.5, kl_temperature=2.0),
        "all_rows": FeatureLoss(rows="all"),
        "rollout": FeatureLoss(rollout=Rollout(3, **rules)),
        "guided": Mixture({"error": SquaredError(3.0, 0.1), "kl": GuidedKL(0.1, 0.2), "marginal": Marginal(2.0)}),
        "guided_rollout": Mixture({"kl": GuidedKL(1.0)}, Rollout(3, **rules)),
        "from_full": Mixture({"error": SquaredError(1.0), "kl": GuidedKL(0.1, 0.2)}),
    }


def batches(base: Base, sampling: Sampling, family: str, together: bool, gaps: Gaps | None) -> list[Pairs]:
    """Pairs without features, of several sizes and widths."""
    known = lambda numbers: KINDS[family].inputs((numbers % 3).tolist())  # noqa: E731
    made = record(Sampler(base, sampling), torch.arange(3), seed=0, inputs=known, batch_size=3, dtype=None)
    pairs, generator = PairDataset(InMemory(made), together=together, gaps=gaps), torch.Generator().manual_seed(0)
    chosen = (torch.arange(start, len(pairs), step) for start, step in ((0, 3), (1, 7)))
    return [pairs.__getitems__(pairs.drawn(index, generator).tolist()) for index in chosen]


def compare(family: str, names: list[str]) -> None:
    kind = KINDS[family]
    base, sampling = kind.base("float32", "cpu"), kind.sampling("float32")
    for name in names:
        objective = objectives(sampling)[name]
        net = kind.forecasting() if name == "from_full" else kind.network()
        net.train()
        for i, stored in enumerate(batches(base, sampling, family, objective.together, Gaps.of(net)), 1):
            found = []
            for fast in (as_it_is, compiled):
                made_ready(objective, sampling.guidance, fast)
                net.zero_grad()
                loss, log = objective(net, base, with_features(stored, base, fast), i)
                loss.backward()
                gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
                found.append([loss.detach(), *log.values(), *gradients])
            plain, fast_ones = found
            off = max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-6)) for a, b in zip(*found, strict=True))
            row = {"family": family, "objective": name, "off": off, "tensors": [len(plain), len(fast_ones)]}
            row["compiled"] = num_compiled()
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    backend, family, *names = sys.argv[1:]
    with_backend(backend)
    torch.set_num_threads(1)
    compare(family, names)
