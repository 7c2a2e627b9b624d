"""Networks that start from full steps: what they are untrained, and what they read."""

import json

import pytest
import torch
from tiny_parts import naming

from migm.accelerators.extrapolation import Taylor
from migm.bases.base import Control
from migm.runtime.errors import UserError
from migm.shortcuts.anchored import AnchoredShortcut
from migm.shortcuts.checkpoint import load_shortcut, save_shortcut
from migm.shortcuts.forecast import ForecastShortcut
from migm.shortcuts.history import HistoryShortcut
from migm.shortcuts.network import Past, ShortcutNetwork, reads_full_steps

CLASSES = [AnchoredShortcut, HistoryShortcut, ForecastShortcut]
BODIES = {"maskgit": {"num_positions": 16}, "dimoo": {"mlp_channels": 32, "rope_theta": 100.0}}


def make(kind=AnchoredShortcut, seed=0, trained=False, **changes):
    """A float64 network; `trained` gives every weight a random value, those that begin at zero too."""
    torch.manual_seed(seed)
    body = changes.pop("body", "maskgit")
    net = kind(**{"channels": 48, "num_heads": 4, "body": body, "options": BODIES[body], **changes}).double().eval()
    if trained:
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return net.requires_grad_(False)


@pytest.fixture
def inputs():
    """Features, new tokens, mask ratios and full steps of three pairs; the last has no earlier full step."""
    torch.manual_seed(1)
    features, earlier = torch.randn(2, 3, 17, 48, dtype=torch.float64)
    new = Control(torch.randn(3, 5, 48, dtype=torch.float64), torch.arange(5).expand(3, -1))
    ratio, before = torch.tensor([[0.5, 0.4, 0.8], [0.8, 0.6, 1.0]], dtype=torch.float64)
    earlier[2] = features[2]
    gap, span = torch.tensor([[1, 3, 2], [4, 2, 0]], dtype=torch.float64) / 16
    return features, new, ratio, Past(before, gap, earlier, span)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("ratio", [1, 2])
def test_an_untrained_network_is_reuse(kind, body, ratio, inputs):
    assert torch.equal(make(kind, body=body, bottleneck_ratio=ratio)(*inputs), inputs[0])


@pytest.mark.parametrize("body", BODIES)
def test_an_untrained_network_with_an_open_gate_is_the_forecast(body, inputs):
    features, _, _, past = inputs
    found = make(ForecastShortcut, body=body, first_gate=1.0)(*inputs)
    for i, (times, step) in enumerate([((4, 8), 9), ((4, 6), 9), ((0,), 2)]):
        values = [past.earlier[i], features[i]][-len(times) :]
        weights = Taylor(1).weights(times, step)
        wanted = sum(float(w) * value for w, value in zip(weights, values, strict=True))
        torch.testing.assert_close(found[i], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("kind", CLASSES)
def test_everything_that_is_read_matters(kind, body, inputs):
    features, new, ratio, past = inputs
    net = make(kind, body=body, trained=True)
    first = net(features, new, ratio, past)
    others = {
        "features": (features + torch.randn_like(features), new, ratio, past),
        "tokens": (features, new._replace(embeddings=new.embeddings.flip(-1)), ratio, past),
        "time": (features, new, ratio - 0.1, past),
        "time of the full step": (features, new, ratio, past._replace(mask_ratio=past.mask_ratio - 0.1)),
    }
    if kind is not AnchoredShortcut:
        others["earlier"] = features, new, ratio, past._replace(earlier=past.earlier.roll(1, -1))
        others["time of the earlier"] = features, new, ratio, past._replace(span=past.span + 0.1)
    for name, changed in others.items():
        differs = (net(*changed) - first).abs().amax((1, 2)) > 1e-6
        assert differs[:2].all(), name


def test_a_row_gate_is_added_to_that_of_channels(inputs):
    features, _, _, past = inputs
    net = make(ForecastShortcut)
    net.gate.data[:] = torch.linspace(-1, 1, 48, dtype=torch.float64)
    shift = net(*inputs) - features
    wanted = net.gate * (features - past.earlier) * torch.tensor([0.25, 1.5, 0]).double()[:, None, None]
    torch.testing.assert_close(shift, wanted, rtol=1e-12, atol=1e-12)
    torch.nn.init.normal_(net.row_gate.weight)
    by_rows = (net(*inputs) - features - wanted)[:2] / (features - past.earlier)[:2]
    torch.testing.assert_close(by_rows, by_rows[..., :1].expand_as(by_rows), rtol=1e-7, atol=1e-9)
    assert by_rows[0, :, 0].unique().numel() == 17


def test_gradients_reach_every_weight_once_the_output_is_not_zero(inputs):
    for kind in CLASSES:
        net = make(kind, trained=True).requires_grad_(True)
        net(*inputs).square().sum().backward()
        assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("kind", CLASSES)
def test_a_saved_network_is_the_same_when_loaded(kind, body, inputs, tmp_path):
    net = make(kind, trained=True, body=body, max_gap=5).float()
    save_shortcut(net, "abc", tmp_path / "x.safetensors")
    loaded, _ = load_shortcut(tmp_path / "x.safetensors", "abc", "weights")
    assert type(loaded) is kind
    assert (loaded.max_gap, loaded.config) == (5, net.config)
    json.dumps(loaded.config)
    single = [x.float() if isinstance(x, torch.Tensor) else x for x in inputs[:3:2]]
    new = inputs[1]._replace(embeddings=inputs[1].embeddings.float())
    past = Past(*(x.float() for x in inputs[3]))
    assert torch.equal(loaded(single[0], new, single[1], past), net(single[0], new, single[1], past))


def test_blocks_are_those_of_the_body_so_that_their_linears_can_be_replaced():
    net = make()
    assert net.blocks is net.body.blocks
    assert sum("blocks." in name for name, _ in net.named_parameters()) > 10  # Muon's


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"body": "dimoo", "options": {"dropout": 0.1}}, ("shortcut.options.dropout", "unknown", "mlp_channels")),
        ({"options": {"dropout": 2}}, ("shortcut.options.dropout=2", "below 1")),
        ({"options": {"time": False}}, ("shortcut.options.time", "unknown", "num_positions")),
        ({"bottleneck_ratio": 5}, ("shortcut.bottleneck_ratio=5", "divide")),
    ],
)
def test_what_the_body_does_not_take_is_refused_by_name(changes, words):
    with pytest.raises(UserError, match=naming(*words)):
        make(**changes)


def test_chained_networks_read_the_last_step():
    assert not reads_full_steps(torch.nn.Linear(1, 1))
    assert ShortcutNetwork.reads == "last_step"
    assert all(map(reads_full_steps, map(make, CLASSES)))
