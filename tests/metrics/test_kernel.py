"""The unbiased kernel distance: torchmetrics' value, no bias of few images, parts merged."""

import pytest
import torch
from safetensors.torch import save_file
from tiny_parts import feature_net
from torchmetrics.image.kid import poly_mmd

from migm.metrics.kernel import KernelCifarNet
from migm.runtime.files import tensors_hash


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The net's weights, a reference made of the real features, and these."""
    folder = tmp_path_factory.mktemp("kernel")
    net = feature_net(folder / "net.safetensors")
    real = torch.rand(200, net.channels, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tensors = {"mean": real.mean(0), "cov": real.T.cov(correction=0)}
    save_file(tensors, folder / "reference.safetensors", {"net": tensors_hash(net.state_dict())})
    return str(folder / "net.safetensors"), str(folder / "reference.safetensors"), real


def value(files, *parts):
    metric = KernelCifarNet(*files[:2])
    for features in parts:
        metric.add(features)
    return float(metric.compute())


def drawn(n, channels, seed, scale=1.2):
    return scale * torch.rand(n, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_it_is_torchmetrics_unbiased_distance_with_the_reference_as_all_there_is(files):
    real = files[2]
    n, channels = real.shape
    kernel = (real @ real.T / channels + 1) ** 2
    among = float((kernel.sum() - kernel.trace()) / (n * (n - 1)))  # torchmetrics takes the reference for a sample
    for seed in range(3):
        features = drawn(n, channels, seed)
        expected = float(poly_mmd(features, real, degree=2, coef=1.0)) - among + float(kernel.mean())
        assert value(files, features) == pytest.approx(expected, abs=1e-12)


def test_few_images_have_no_bias(files):
    channels = files[2].shape[1]
    many = value(files, drawn(4000, channels, 0, 1.05))
    few = torch.tensor([value(files, drawn(10, channels, seed, 1.05)) for seed in range(1, 301)])
    error = float(few.std()) / 300**0.5
    assert abs(float(few.mean()) - many) < 4 * error
    assert KernelCifarNet(*files[:2]).unbiased


def test_batches_and_merged_parts_give_the_value_of_all_at_once(files):
    features = drawn(60, files[2].shape[1], 5)
    whole = value(files, features)
    assert value(files, features[:25], features[25:]) == pytest.approx(whole, abs=1e-13)
    first, second = KernelCifarNet(*files[:2]), KernelCifarNet(*files[:2])
    first.add(features[:25])
    second.add(features[25:])
    second.put_before(first.state())
    assert float(second.compute()) == pytest.approx(whole, abs=1e-13)


def test_it_grows_with_the_difference(files):
    channels = files[2].shape[1]
    assert value(files, drawn(500, channels, 3, 1.0)) < value(files, drawn(500, channels, 3, 1.1))
