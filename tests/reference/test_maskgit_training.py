"""The recorded training step: errors, losses and gradients with roll-outs of one and two steps."""

from types import SimpleNamespace

import pytest
import torch
from tiny_parts import wrap

from migm.bases.transformer import MaskTransformer
from migm.sampling.schedule import Increments
from migm.sampling.select import Confidence
from migm.shortcuts.checkpoint import published
from migm.training.objective import FeatureLoss
from migm.training.rollout import Rollout, predict
from migm.trajectories.dataset import Pairs

STEPS, CLASSES, MASK = 15, 1000, 1024  # hard-wired in the original's training
MLP_KEY = "transformer.layers.0.1.fn.net.0.weight"


def part(tensors, prefix):
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def case(read_vector):
    """Base, student, batch of one pair, and everything recorded of the step."""
    tensors, meta = read_vector("maskgit_trainstep")
    frozen = part(tensors, "base.")
    frozen["bias"] = frozen.pop("bias_f16").float()
    rows, channels = frozen["pos_emb"].shape[1:]
    depth = 1 + max(int(name.split(".")[2]) for name in frozen if name.startswith("transformer"))
    sizes = (channels, depth, int(meta["heads"]), len(frozen[MLP_KEY]))
    transformer = MaskTransformer(rows - 1, MASK, CLASSES, *sizes, dropout=0.5)  # which a teacher does not drop
    transformer.load_state_dict(frozen)
    weights = part(tensors, "student.")
    network, sizes = published(weights, "the recorded student")
    student = network(**sizes, num_heads=int(meta["heads"]))
    student.load_state_dict(weights)
    _, _, label, half = meta["key"].split("_")
    current, new = (tensors[f"in.{name}"][:, :-1] for name in ("cur_token_ids", "new_token_map"))
    batch = Pairs(
        features=tensors["in.prev_feat"],
        target=tensors["in.tgt_feat"],
        tokens=current.clamp(max=MASK - 1),
        new=new,
        masked=current == MASK,
        steps=torch.tensor([int(meta["step"])]),
        conditions=torch.tensor([[int(label) if half == "cond" else CLASSES]]),
        halves=torch.tensor([int(half == "uncond")]),
        images=torch.tensor([0]),
        width=int(new.sum()),
        lengths=[1],
        host_steps=[int(meta["step"])],
        num_steps=int(meta["step"]) + 2,  # the base does not read them
    )
    return wrap(transformer, "float32"), student, batch, tensors, float(meta["kl_weight"])


@pytest.fixture(params=[1, 2])
def step(request, case, monkeypatch):
    """The case, its roll-out length, and an objective that replays the recorded draws."""
    tensors = case[3]

    def recorded_draw(logits, noise, step, positions, num_steps):
        drawn = tensors["r2.pred"][:, :-1]
        return drawn, logits.log_softmax(-1).gather(-1, drawn[..., None])[..., 0]

    gumbel = SimpleNamespace(gumbel=lambda *_, dtype: tensors["r2.gumbel"][:, :-1])
    monkeypatch.setattr("migm.training.rollout.KeyedNoise", lambda *_: gumbel)
    rollout = Rollout(2, STEPS, Increments("arccos"), recorded_draw, Confidence(7.0))
    return request.param, case, FeatureLoss(kl_weight=case[4], rollout=rollout)


def test_masked_features_and_targets_are_the_recorded_ones(step):
    length, (base, student, batch, tensors, _), objective = step
    now, target = objective.rollout(student, base, batch, length - 1)
    assert torch.equal(now.masked, tensors[f"r{length}.mask_map"][:, :-1])
    close = {"rtol": 2e-5, "atol": 2e-5}
    predicted = predict(student, base, now)[:, :-1][now.masked]
    torch.testing.assert_close(predicted, tensors[f"r{length}.est_feat"][0], **close)
    torch.testing.assert_close(target[:, :-1][now.masked], tensors[f"r{length}.tgt_feat"][0], **close)


def test_losses_and_gradients_are_the_recorded_ones(step):
    length, (base, student, batch, tensors, _), objective = step
    student.zero_grad()
    loss, log = objective(student, base, batch, length - 1)
    loss.backward()
    for found, name in ((log["feature_mse"], "mse"), (log["logit_kl"], "kl"), (loss, "loss")):
        assert found.item() == pytest.approx(tensors[f"r{length}.{name}"].item(), rel=2e-5), name
    for name in ("proj_in.weight", "adaLN_modulation.weight"):
        wanted = tensors[f"r{length}.grad.{name}"]
        torch.testing.assert_close(
            student.get_parameter(name).grad, wanted, rtol=2e-5, atol=2e-5 * float(wanted.abs().max())
        )
