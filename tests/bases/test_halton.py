"""Halton-MaskGIT as a base: its contract."""

import pytest
import torch
from test_halton_files import llamagen, transformer
from tiny_parts import halton_base, moment

from migm.bases.base import BaseSpec, image_rows
from migm.bases.halton import HaltonMaskGIT


@pytest.fixture(scope="module")
def base():
    return halton_base()


@pytest.fixture
def tokens():
    return torch.randint(0, 25, (3, 16), generator=torch.Generator().manual_seed(2))


def test_spec_states_the_models_sizes(base):
    assert base.spec == BaseSpec(num_tokens=16, grid=(4, 4), vocab_size=24, channels=46, num_layers=2)


@pytest.mark.parametrize("guided", [False, True])
def test_a_branch_has_the_labels_as_its_condition_and_the_register_behind_the_image(base, tokens, guided):
    (branch,) = base.encode(torch.tensor([3, 0, 9]), guided)
    labels = [[3], [0], [9], *(3 * [[10]] if guided else [])]
    assert (branch.copies, branch.condition.tolist()) == (1 + guided, labels)
    assert branch.rows.tolist() == len(labels) * [list(range(16))]
    assert base.features(tokens, branch, moment(torch.ones(3))).shape == (len(labels), 17, 46)


def test_a_branch_of_kept_conditions_or_of_some_images_is_the_one_encode_made(base, tokens):
    (both,) = base.encode(torch.tensor([3, 0, 9]), guided=True)
    features = base.features(tokens, both, moment(torch.ones(3)))
    mixed = base.features(tokens, base.branch(both.condition[[0, 4, 2]]), moment(torch.ones(3)))
    torch.testing.assert_close(mixed, features[[0, 4, 2]])
    two = torch.tensor([2, 0])
    some = base.features(tokens[two], both.images(two), moment(torch.ones(2)))
    torch.testing.assert_close(some, features[[2, 0, 5, 3]])


def test_features_depend_on_the_class_and_on_every_token(base, tokens):
    (one,), (other,) = (base.encode(torch.tensor(labels), guided=False) for labels in ([3, 0, 9], [4, 0, 9]))
    before, after = (base.features(tokens, branch, moment(torch.ones(3))) for branch in (one, other))
    assert (before[0] != after[0]).all()
    assert torch.equal(before[1:], after[1:])
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 25
    assert (base.features(changed, one, moment(torch.ones(3))) != before).any(-1).all()


def test_a_branch_under_the_autocast_of_a_training_is_the_same(base):
    labels = torch.tensor([[3], [10]])
    with torch.autocast("cpu", torch.bfloat16):
        inside = base.branch(labels)
    assert torch.equal(inside.modulation, base.branch(labels).modulation)


def test_the_head_is_affine_and_the_same_everywhere(base, tokens):
    (branch,) = base.encode(torch.tensor([3, 0, 9]), guided=False)
    features = image_rows(base.features(tokens, branch, moment(torch.ones(3))), branch)
    logits = base.head(features)
    assert logits.shape == (3, 16, 24)
    where = torch.tensor([[0, 5], [1, 2], [14, 0]])
    some = base.head(image_rows(base.features(tokens, branch, moment(torch.ones(3))), branch, where), where)
    torch.testing.assert_close(some, logits.gather(1, where[..., None].expand(-1, -1, 24)))
    torch.testing.assert_close(base.head(2 * features - features.flip(0)), 2 * logits - logits.flip(0))


@pytest.mark.parametrize("mask_logit", [False, True])
def test_only_with_its_own_logit_the_mask_can_be_drawn(tokens, mask_logit):
    base = halton_base(mask_logit=mask_logit)
    (branch,) = base.encode(torch.tensor([3, 0, 9]), guided=False)
    logits = base.head(image_rows(base.features(tokens, branch, moment(torch.ones(3))), branch))
    assert logits.shape[-1] == 24 + mask_logit
    assert base.fingerprint() != halton_base(mask_logit=not mask_logit).fingerprint()


def test_control_gives_table_plus_position_to_both_halves(base):
    new, positions = torch.tensor([[5, 7], [0, 23]]), torch.tensor([[1, 15], [0, 8]])
    (branch,) = base.encode(torch.tensor([3, 0]), guided=True)
    mask = torch.tensor([[True, True], [True, False]])
    control, net = base.control(new, positions, branch, mask), base.transformer
    wanted = net.tok_emb.weight[new] + net.pos_emb.weight[positions]
    for value, half in ((control.embeddings, wanted), (control.rows, positions), (control.mask, mask)):
        assert torch.equal(value, torch.cat([half, half]))
    first_input = base.prepare(torch.full((2, 16), 5), branch, moment(torch.ones(2)))[0]
    assert torch.equal(control.embeddings[0, 0], first_input[0, 1])


def test_images_become_tokens_and_tokens_images(base):
    net = HaltonMaskGIT(transformer(), llamagen(), random_weights=True, dtype="float32", device="cpu")
    images = net.decode(torch.randint(0, 24, (2, 16), generator=torch.Generator().manual_seed(0)))
    assert images.shape == (2, 3, 16, 16)
    assert net.tokenize(images).shape == (2, 16)


@pytest.mark.parametrize(("dtype", "linear"), [("bfloat16", "plain"), ("float32", "int8_weights")])
def test_lower_precision_gives_about_the_same_features(tokens, dtype, linear):
    def features(dtype, linear="plain"):
        parts = (transformer(seed=5), llamagen())
        net = HaltonMaskGIT(*parts, random_weights=True, dtype=dtype, device="cpu", linear=linear)
        (branch,) = net.encode(torch.tensor([3, 0, 9]), guided=True)
        return net.features(tokens, branch, moment(torch.ones(3)))

    exact, lower = features("float32"), features(dtype, linear)
    assert lower.dtype == getattr(torch, dtype)
    assert 0 < (lower.float() - exact).norm() < 0.03 * exact.norm()


def test_the_fingerprint_is_of_weights_heads_and_precision():
    fingerprints = {
        halton_base().fingerprint(),
        halton_base(seed=1).fingerprint(),
        halton_base(dtype="float32").fingerprint(),
        halton_base(num_heads=2).fingerprint(),
        halton_base(num_heads=23).fingerprint(),
    }
    assert len(fingerprints) == 5
    assert halton_base().fingerprint() in fingerprints
