"""The base contract, tier 1, as MaskGIT fulfils it."""

import pytest
import torch
from tiny_parts import moment

from migm.bases.base import BaseSpec, Branch, image_rows
from migm.runtime.errors import UserError


@pytest.fixture
def tokens():
    return torch.randint(0, 25, (3, 16), generator=torch.Generator().manual_seed(2))


def features_of(base, tokens, guided=True):
    (branch,) = base.encode(torch.tensor([3, 0, 9]), guided)
    return base.features(tokens, branch, moment(torch.ones(3)))


def test_spec_states_the_models_sizes(tiny_base):
    assert tiny_base.spec == BaseSpec(num_tokens=16, grid=(4, 4), vocab_size=24, channels=48, num_layers=2)


@pytest.mark.parametrize("guided", [False, True])
def test_a_branch_has_the_image_first_and_the_labels_as_its_condition(tiny_base, guided):
    (branch,) = tiny_base.encode(torch.tensor([3, 0, 9]), guided)
    labels = [[3], [0], [9], *(3 * [[10]] if guided else [])]
    assert (branch.copies, branch.condition.tolist()) == (1 + guided, labels)
    assert branch.rows.tolist() == len(labels) * [list(range(16))]
    assert branch.mask is None


def test_a_branch_of_kept_conditions_is_the_one_encode_made(tiny_base, tokens):
    (both,) = tiny_base.encode(torch.tensor([3, 0, 9]), guided=True)
    mixed = both.condition[[0, 4, 2]]  # halves as training sees them, in any order
    features = tiny_base.features(tokens, tiny_base.branch(mixed), moment(torch.ones(3)))
    torch.testing.assert_close(features, features_of(tiny_base, tokens)[[0, 4, 2]])


def test_image_rows_are_those_of_the_branch_at_every_copy():
    features = torch.arange(4.0 * 6).view(4, 6, 1)
    rows = torch.tensor([[1, 2, 4], [0, 1, 2], [3, 4, 5], [5, 0, 2]])
    branch = Branch(torch.zeros(4, 1, dtype=torch.long), rows, copies=2)
    assert image_rows(features, branch)[..., 0].tolist() == [[1, 2, 4], [6, 7, 8], [15, 16, 17], [23, 18, 20]]
    positions = torch.tensor([[0, 2], [2, 1]])  # of two images: the copies share them
    assert image_rows(features, branch, positions)[..., 0].tolist() == [[1, 4], [8, 7], [15, 17], [20, 18]]


def test_head_at_positions_equals_those_rows_of_the_whole_head(tiny_base, tokens):
    (branch,) = tiny_base.encode(torch.tensor([3, 0, 9]), guided=False)
    features = features_of(tiny_base, tokens, guided=False)
    positions = torch.tensor([[0, 5, 15], [1, 2, 3], [14, 0, 7]])
    every, some = image_rows(features, branch), image_rows(features, branch, positions)
    whole = tiny_base.head(every).gather(1, positions[..., None].expand(-1, -1, 24))
    torch.testing.assert_close(tiny_base.head(some, positions), whole, rtol=1e-12, atol=1e-12)


def test_head_of_all_rows_begins_with_that_of_the_image(tiny_base, tokens):
    features = features_of(tiny_base, tokens, guided=False)
    logits = tiny_base.head(features)
    assert logits.shape == (3, 17, 24)
    torch.testing.assert_close(logits[:, :16], tiny_base.head(features[:, :16]))


def test_the_head_is_affine(tiny_base, tokens):
    """Or guidance could not be applied before it."""
    a, b = features_of(tiny_base, tokens).chunk(2)
    mixed = 3.5 * tiny_base.head(a) - 2.5 * tiny_base.head(b)
    torch.testing.assert_close(tiny_base.head(3.5 * a - 2.5 * b), mixed, rtol=1e-10, atol=1e-10)


def test_guided_features_are_the_conditional_half_and_then_the_unconditional(tiny_base, tokens):
    features = features_of(tiny_base, tokens)
    net = tiny_base.transformer
    assert features.shape == (6, 17, 48)
    torch.testing.assert_close(features[:3], features_of(tiny_base, tokens, guided=False))
    torch.testing.assert_close(features[3:], net(net.sequence(tokens, torch.full((3,), 10))))
    assert not torch.allclose(features[:3], features[3:])


def test_control_is_token_plus_position_embedding(tiny_base):
    positions = torch.tensor([[2, 11]])
    control = tiny_base.control(torch.tensor([[7, 7]]), positions, tiny_base.branch(torch.tensor([[3]])))
    net = tiny_base.transformer
    assert torch.equal(control.embeddings[0], net.tok_emb.weight[[7, 7]] + net.pos_emb[0, [2, 11]])
    assert torch.equal(control.rows, positions)
    assert (control.mask, control.prompt, control.row_mask) == (None, 0, None)


def test_control_is_the_same_for_both_copies(tiny_base):
    tokens, positions, mask = torch.tensor([[7, 4], [1, 0]]), torch.tensor([[2, 11], [5, 0]]), torch.ones(2, 2) > 0
    mask[1, 1] = False
    (both,) = tiny_base.encode(torch.tensor([3, 0]), guided=True)
    control = tiny_base.control(tokens, positions, both, mask)
    alone = tiny_base.control(tokens, positions, tiny_base.branch(both.condition[:2]), mask)
    for value, half in ((control.embeddings, alone.embeddings), (control.rows, positions), (control.mask, mask)):
        assert torch.equal(value, torch.cat([half, half]))


@pytest.mark.parametrize(("label", "guided"), [(-1, False), (10, False), (10, True), (99, True)])
def test_labels_out_of_range_are_refused(tiny_base, label, guided):
    # 10 is the id of "no class" inside the model, and must not be reachable from outside
    with pytest.raises(UserError, match=rf"labels=\[{label}\].*0 to 9"):
        tiny_base.encode(torch.tensor([0, label, 9]), guided)


def test_prompts_are_refused(tiny_base):
    with pytest.raises(UserError, match=r"prompts=\['a dog'\].*labels from 0 to 9"):
        tiny_base.encode(["a dog", "a cat"], guided=True)


def test_decode_goes_through_the_tokenizer(tiny_base, tokens):
    images = tiny_base.decode(tokens.clamp(max=23))
    assert images.shape == (3, 3, 16, 16)
    assert images.dtype == torch.uint8


def test_the_base_is_frozen_and_in_eval_mode(tiny_base):
    for net in (tiny_base.transformer, tiny_base.tokenizer):
        assert not net.training
        assert not any(p.requires_grad for p in net.parameters())


def test_fingerprint_depends_on_weights_and_precision_alone(make_base):
    one = make_base(seed=0).fingerprint()
    changed = make_base(seed=0)
    changed.transformer.bias[3, 5] += 1
    assert make_base(seed=0).fingerprint() == one
    others = [changed, make_base(seed=1), make_base(dtype="float32")]
    assert len({one, *(base.fingerprint() for base in others)}) == 4
