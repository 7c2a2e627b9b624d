"""What the shortcut is trained to do: formulas, against the original step and against trivial cases."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_parts import collected, tiny
from torch.nn.functional import cosine_similarity, kl_div

from migm.bases.maskgit import MaskGIT
from migm.bases.tokenizer import ConvVQ
from migm.bases.transformer import MaskTransformer
from migm.config import build
from migm.shortcuts.losses import masked_cosine, masked_mse
from migm.shortcuts.maskgit import MaskGITShortcut
from migm.training.objective import FeatureMSE, predict
from migm.training.schedule import trapezoid
from migm.trajectories.dataset import PairDataset, Pairs

STEP = Path(os.environ.get("MIGM_VECTORS", Path(__file__).parents[3] / "shared" / "vectors"))
STEP = STEP / "maskgit_trainstep.safetensors"
recorded = pytest.mark.skipif(not STEP.exists(), reason="recorded cases are not here (MIGM_VECTORS)")


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """The tiny base and its pairs."""
    config = tiny(tmp_path_factory.mktemp("objective"))
    return build(config.base), PairDataset(collected(config))


def test_masked_mse_is_the_mean_over_masked_rows_and_channels():
    torch.manual_seed(0)
    predicted, target, masked = torch.randn(3, 5, 4), torch.randn(3, 5, 4), torch.rand(3, 5) > 0.5
    expected = (predicted[masked] - target[masked]).square().mean()
    assert masked_mse(predicted, target, masked).item() == pytest.approx(expected.item(), rel=1e-6)


def test_masked_losses_ignore_unmasked_rows_and_their_gradient():
    torch.manual_seed(0)
    predicted, target = torch.randn(3, 5, 4, requires_grad=True), torch.randn(3, 5, 4)
    masked = torch.rand(3, 5) > 0.5
    far = predicted.detach() + 1e3 * ~masked[..., None]
    assert torch.equal(masked_mse(far, target, masked), masked_mse(predicted, target, masked))
    assert torch.equal(masked_cosine(far, target, masked), masked_cosine(predicted, target, masked))
    masked_mse(predicted, target, masked).backward()
    assert not predicted.grad[~masked].any()
    assert predicted.grad[masked].all()


@pytest.mark.parametrize("loss", [masked_mse, masked_cosine])
def test_without_masked_rows_a_loss_is_zero_and_finite(loss):
    assert loss(torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)) == 0


def test_masked_cosine_is_the_mean_over_masked_rows():
    torch.manual_seed(0)
    predicted, target, masked = torch.randn(3, 5, 4), torch.randn(3, 5, 4), torch.rand(3, 5) > 0.5
    expected = cosine_similarity(predicted[masked], target[masked], dim=-1).mean()
    assert masked_cosine(predicted, target, masked).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_shortcut_that_adds_nothing_costs_what_reuse_costs(tiny_run):
    base, pairs = tiny_run
    shortcut = MaskGITShortcut(48, num_heads=2)
    torch.nn.init.zeros_(shortcut.proj_out.weight)
    torch.nn.init.zeros_(shortcut.proj_out.bias)
    loss, log = FeatureMSE()(shortcut, base, pairs.__getitems__(range(20)))
    assert loss.item() == log["feature_mse"].item() == log["reuse_mse"].item() > 0


def test_a_perfect_shortcut_costs_nothing(tiny_run):
    base, pairs = tiny_run
    batch = pairs.__getitems__(range(8))

    class Oracle(torch.nn.Linear):
        def forward(self, features, *_):
            return batch.target.float()

    loss, log = FeatureMSE()(Oracle(1, 1), base, batch)
    assert loss == 0
    assert log["feature_cosine"].item() == pytest.approx(1, abs=1e-5)


def test_a_shortcut_learns_a_handful_of_pairs(tiny_run):
    base, pairs = tiny_run
    torch.manual_seed(0)
    shortcut, batch = MaskGITShortcut(48, num_heads=2), pairs.__getitems__(range(4))
    optimizer = torch.optim.AdamW(shortcut.parameters(), lr=3e-3)
    for _ in range(150):
        loss, log = FeatureMSE()(shortcut, base, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert log["feature_mse"] < 0.2 * log["reuse_mse"]


def test_padding_does_not_change_a_prediction(tiny_run):
    base, pairs = tiny_run
    torch.manual_seed(0)
    shortcut, batch = MaskGITShortcut(48, num_heads=2), pairs.__getitems__(range(5))
    assert not batch.new_mask.all()
    together = predict(shortcut, base, batch)
    for i in range(5):
        alone = predict(shortcut, base, pairs.__getitems__([i]))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-5)


def test_the_base_gets_no_gradient(tiny_run):
    base, pairs = tiny_run
    shortcut = MaskGITShortcut(48, num_heads=2)
    FeatureMSE()(shortcut, base, pairs.__getitems__(range(4)))[0].backward()
    assert all(p.grad is None and not p.requires_grad for p in base.transformer.parameters())
    assert all(p.grad is not None for p in shortcut.parameters())


def original_step() -> tuple[MaskGIT, MaskGITShortcut, Pairs, dict[str, torch.Tensor]]:
    """Base, student and batch of the recorded training step (maskgit.md 7.2)."""
    data = load_file(STEP)
    frozen = {name.removeprefix("base."): tensor for name, tensor in data.items() if name.startswith("base.")}
    frozen["bias"] = frozen.pop("bias_f16").float()
    transformer = MaskTransformer(1024, 1024, 1000, channels=16, depth=1, num_heads=2, mlp_channels=32)
    transformer.load_state_dict(frozen)
    base = MaskGIT(transformer, ConvVQ(8, 4, 4, 1), random_weights=True, dtype="float32", device="cpu")
    student = MaskGITShortcut(16, bottleneck_ratio=2, num_heads=2)
    weights = {name.removeprefix("student."): value for name, value in data.items() if name.startswith("student.")}
    student.load_state_dict(weights)
    masked = data["in.cur_token_ids"][:, :1024] == 1024
    positions = data["in.new_token_map"][0].nonzero().T
    batch = Pairs(
        features=data["in.prev_feat"],
        target=data["in.tgt_feat"],
        new_tokens=data["in.new_token_ids"],
        new_positions=positions,
        new_mask=torch.ones_like(positions, dtype=torch.bool),
        masked=masked,
        mask_ratio=masked.float().mean(1),
        steps=torch.tensor([6]),
    )
    return base, student, batch, data


@recorded
def test_a_step_has_the_original_masked_features_and_error():
    base, student, batch, data = original_step()
    assert torch.equal(batch.masked, data["r1.mask_map"][:, :1024])
    loss, log = FeatureMSE()(student, base, batch)
    predicted = predict(student, base, batch)[:, :1024][batch.masked]
    torch.testing.assert_close(predicted, data["r1.est_feat"][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(batch.target[:, :1024][batch.masked], data["r1.tgt_feat"][0], rtol=0, atol=0)
    assert loss.item() == pytest.approx(data["r1.mse"].item(), rel=1e-5)
    assert log["feature_mse"].item() == loss.item()


@recorded
def test_a_step_has_the_original_gradients():
    base, student, batch, data = original_step()
    loss, _ = FeatureMSE()(student, base, batch)
    positions = batch.masked[0].nonzero().T
    # The recorded step adds half of a KL term that FeatureMSE has not: it is added here, with the base's head.
    ours = base.head(predict(student, base, batch), positions).log_softmax(-1)
    theirs = base.head(batch.target, positions).log_softmax(-1)
    kl = kl_div(ours, theirs, log_target=True, reduction="sum") / positions.shape[1]
    assert kl.item() == pytest.approx(data["r1.kl"].item(), rel=1e-4)
    total = loss + 0.5 * kl
    assert total.item() == pytest.approx(data["r1.loss"].item(), rel=1e-5)
    total.backward()
    for name in ("proj_in.weight", "adaLN_modulation.weight"):
        found = student.get_parameter(name).grad
        torch.testing.assert_close(found, data[f"r1.grad.{name}"], rtol=1e-3, atol=1e-6)


def test_the_trapezoid_rises_stays_and_falls_to_zero():
    parameter = torch.nn.Parameter(torch.zeros(1))
    schedule = trapezoid(torch.optim.SGD([parameter], lr=1.0), total_steps=20, warmup_steps=4, decay=0.5)
    rates = []
    for _ in range(21):
        rates.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:11] == [1.0] * 7
    assert rates[11:] == pytest.approx([1 - i / 10 for i in range(1, 11)])
