"""DiMOO-Shortcut's recorded training step: losses, gradients, updated weights, and a roll-out of two steps."""

import json

import pytest
import torch

from migm.bases.layout import padded_ids
from migm.sampling.draw import GumbelMax
from migm.sampling.noise import SELECT, to_gumbel
from migm.sampling.schedule import CosineFloor
from migm.sampling.select import Confidence
from migm.shortcuts.checkpoint import load_shortcut
from migm.training.objective import FeatureLoss
from migm.training.rollout import Rollout, Situation, predict
from migm.trajectories.dataset import Pairs

CLOSE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture(scope="module")
def base(recorded_dimoo):
    return recorded_dimoo()


@pytest.fixture
def student(read_vector, base, tmp_path):
    tensors, meta = read_vector("dimoo_shortcut_A_state")
    torch.save(tensors, tmp_path / "shortcut.pth")
    heads = json.loads(meta["config"])["n_heads"]
    network = load_shortcut(tmp_path / "shortcut.pth", base.fingerprint(), "weights", num_heads=heads)[0]
    return network.requires_grad_(True).train()


@pytest.fixture(scope="module")
def batch(read_vector, base):
    """The recorded sample as a batch of one pair."""
    tensors, meta = read_vector("dimoo_train_sample")
    ids, start = tensors["cur_token_ids"], len(tensors["cur_token_ids"]) - base.layout.num_rows
    places = base.layout.places + start
    tokens = ids[places]
    return Pairs(
        features=tensors["prev_feat"][None],
        target=tensors["tgt_feat"][None],
        tokens=(tokens - base.offset).clamp(min=0)[None],
        new=tensors["new_token_map"][places][None],
        masked=(tokens == base.layout.mask)[None],
        steps=torch.tensor([int(meta["step"])]),
        conditions=padded_ids([ids[:start].tolist()], base.device),
        halves=torch.zeros(1, dtype=torch.long),
        images=torch.zeros(1, dtype=torch.long),
        width=int(tensors["new_token_map"][places].sum()),
        lengths=[start],
        host_steps=[int(meta["step"])],
        num_steps=int(meta["step"]) + 2,  # the base does not read them
    )


def test_the_new_tokens_are_the_recorded_ones(read_vector, base, batch):
    """Prompt tokens first, then what the step revealed, at their rows of the sequence."""
    tensors, _ = read_vector("dimoo_train_sample")
    positions = batch.new.nonzero()[:, 1][None]
    new = base.control(batch.tokens.gather(1, positions), positions, base.branch(batch.conditions))
    assert torch.equal(new.rows[0], tensors["new_token_map"].nonzero()[:, 0])
    assert torch.equal(new.embeddings[0], base.transformer.wte(tensors["new_token_ids"]))
    assert new.mask is None  # all of them count


@pytest.fixture(autouse=True)
def ratios_of_4096_tokens(monkeypatch, read_vector):
    """The original takes the mask ratio of 4096 tokens whatever the image's size; at 1024 px it is the true one."""
    num_steps = int(read_vector("dimoo_sample_vanilla")[1]["timesteps"])
    left = 4096 - torch.tensor(CosineFloor().counts(4096, num_steps)).cumsum(0)

    def ratio(now):
        counts = now.masked.shape[1] - torch.tensor(CosineFloor().counts(now.masked.shape[1], num_steps)).cumsum(0)
        return left[(counts == now.masked.sum(1, keepdim=True)).int().argmax(1)] / 4096

    monkeypatch.setattr(Situation, "mask_ratio", property(ratio))


def test_the_losses_are_the_recorded_ones(read_vector, base, student, batch):
    tensors, _ = read_vector("dimoo_train_step")
    torch.testing.assert_close(batch.target, tensors["tgt_feat"], **CLOSE)
    torch.testing.assert_close(predict(student, base, Situation.of(batch, base)), tensors["est_feat"], **CLOSE)
    only = FeatureLoss(rows="all")(student, base, batch)[0]
    loss, log = FeatureLoss(mse_weight=100.0, kl_weight=1.0, rows="all")(student, base, batch)
    found = {"loss_mse_only": only, "loss_mse100_kl1": loss, "mse": log["feature_mse"], "kl": log["logit_kl"]}
    for name, value in found.items():
        assert value.item() == pytest.approx(tensors[name].item(), rel=2e-5), name


def test_gradients_and_updated_weights_are_the_recorded_ones(read_vector, base, student, batch):
    tensors, meta = read_vector("dimoo_train_step")
    rate, decay = float(meta["lr"]), float(meta["weight_decay"])
    optimizer = torch.optim.AdamW(student.parameters(), rate, weight_decay=decay)
    FeatureLoss(rows="all")(student, base, batch)[0].backward()
    gradients = {name.removeprefix("grad."): value for name, value in tensors.items() if name.startswith("grad.")}
    assert set(gradients) == {name for name, _ in student.named_parameters()}
    for name, wanted in gradients.items():
        assert (student.get_parameter(name).grad - wanted).norm() < 2e-5 * wanted.norm(), name
    optimizer.step()
    for name, parameter in student.named_parameters():
        # Where a gradient is next to nothing, the first step of Adam still is one whole rate, in the sign's direction.
        torch.testing.assert_close(parameter, tensors[f"after_adamw.{name}"], rtol=2e-5, atol=2e-2 * rate)


class RecordedDraws:
    """The uniforms of a recorded roll-out, which were drawn for masked positions only."""

    def __init__(self, tensors, masked):
        self.tensors, self.masked = tensors, masked

    def gumbel(self, purpose, step, positions, width=None, dtype=torch.float64):
        uniform = self.tensors["u_conf" if purpose == SELECT else "u_sample"]
        whole = torch.zeros(*positions.shape, *uniform.shape[2:])
        whole[self.masked] = uniform[0]
        return to_gumbel(whole, dtype)


def test_a_rollout_of_two_steps_is_the_recorded_one(read_vector, base, student, batch, monkeypatch):
    tensors, meta = read_vector("dimoo_train_rollout2")
    length, num_steps = int(meta["rollout_step"]), int(read_vector("dimoo_sample_vanilla")[1]["timesteps"])
    draws = RecordedDraws(tensors, batch.masked)
    monkeypatch.setattr("migm.training.rollout.KeyedNoise", lambda *_: draws)
    draw, select = GumbelMax(1.0, "float32", plain_confidence=True), Confidence(1.0, "constant", "float32")
    rollout = Rollout(length, num_steps, CosineFloor(), draw, select)
    now, target = rollout(student, base, batch, iteration=length - 1)
    start = tensors["tokens_k2"].shape[1] - base.layout.num_rows
    ids = tensors["tokens_k2"][:, base.layout.places + start]
    assert torch.equal(now.tokens, torch.where(ids == base.layout.mask, base.spec.vocab_size, ids - base.offset))
    torch.testing.assert_close(now.features, tensors["feat_k1"], **CLOSE)
    torch.testing.assert_close(predict(student, base, now), tensors["feat_k2"], **CLOSE)
    torch.testing.assert_close(target, tensors["tgt_feat"], **CLOSE)
    loss = FeatureLoss(rows="all", rollout=rollout)(student, base, batch, length - 1)[0]
    assert loss.item() == pytest.approx(tensors["loss"].item(), rel=2e-5)
