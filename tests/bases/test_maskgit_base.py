"""The base contract, tier 1, as MaskGIT fulfils it."""

import pytest
import torch

from migm.bases.base import BaseSpec
from migm.runtime import UserError


@pytest.fixture
def tokens():
    return torch.randint(0, 25, (3, 16), generator=torch.Generator().manual_seed(2))


def features_of(base, tokens, guided=True):
    (branch,) = base.encode(torch.tensor([3, 0, 9]), guided)
    return base.features(tokens, branch, torch.ones(3))


def test_spec_states_the_models_sizes(tiny_base):
    assert tiny_base.spec == BaseSpec(
        num_tokens=16, grid=(4, 4), vocab_size=24, channels=48, num_layers=2, image_token_rows=(0, 16)
    )


def test_head_at_positions_equals_those_rows_of_the_whole_head(tiny_base, tokens):
    features = features_of(tiny_base, tokens, guided=False)
    positions = torch.tensor([[0, 5, 15], [1, 2, 3], [14, 0, 7]])
    whole = tiny_base.head(features).gather(1, positions[..., None].expand(-1, -1, 24))
    torch.testing.assert_close(tiny_base.head(features, positions), whole, rtol=1e-12, atol=1e-12)


def test_guided_features_are_the_conditional_half_and_then_the_unconditional(tiny_base, tokens):
    features = features_of(tiny_base, tokens)
    net = tiny_base.transformer
    assert features.shape == (6, 17, 48)
    torch.testing.assert_close(features[:3], features_of(tiny_base, tokens, guided=False))
    torch.testing.assert_close(features[3:], net(net.sequence(tokens, torch.full((3,), 10))))
    assert not torch.allclose(features[:3], features[3:])


def test_control_is_token_plus_position_embedding(tiny_base):
    positions = torch.tensor([[2, 11]])
    control = tiny_base.control(torch.tensor([[7, 7]]), positions)
    net = tiny_base.transformer
    assert torch.equal(control.embeddings[0], net.tok_emb.weight[[7, 7]] + net.pos_emb[0, [2, 11]])
    assert torch.equal(control.rows, positions)


@pytest.mark.parametrize(("label", "guided"), [(-1, False), (10, False), (10, True), (99, True)])
def test_labels_out_of_range_are_refused(tiny_base, label, guided):
    # 10 is the id of "no class" inside the model, and must not be reachable from outside
    with pytest.raises(UserError, match=rf"labels=\[{label}\].*0 to 9"):
        tiny_base.encode(torch.tensor([0, label, 9]), guided)


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


def test_an_unknown_dtype_is_refused_by_name(make_base):
    with pytest.raises(UserError, match=r"base\.dtype=float16"):
        make_base(dtype="float16")
