"""The Frechet distance, and the metric that streams it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from scipy.linalg import sqrtm
from tiny_parts import feature_net, naming, reference_for
from torch import Tensor

from migm.metrics.extrapolated import FrechetCifarNetInf
from migm.metrics.frechet import FrechetCifarNet, frechet_distance, moments
from migm.metrics.metric import Batch, result_name
from migm.runtime.errors import UserError


def statistics(seed: int, count: int = 200, channels: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, dtype=torch.float64, generator=generator)
    rows = torch.randn(count, channels, dtype=torch.float64, generator=generator) @ mixing + seed
    return rows.mean(0), rows.T.cov()


@pytest.mark.parametrize("count", [200, 8], ids=["full rank", "fewer samples than channels"])
def test_the_distance_is_the_definition_by_matrix_root(count):
    (mean_a, cov_a), (mean_b, cov_b) = statistics(1), statistics(2, count)
    root = torch.from_numpy(sqrtm((cov_a @ cov_b).numpy()).real)
    expected = (mean_a - mean_b).square().sum() + (cov_a + cov_b - 2 * root).trace()
    found = frechet_distance(mean_a, cov_a, mean_b, cov_b)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_distance_of_diagonal_gaussians_has_a_closed_form():
    mean_a, mean_b = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([1.0, 1.0, 0.0]).double()
    a, b = torch.tensor([1.0, 4.0, 0.25]).double(), torch.tensor([9.0, 1.0, 0.25]).double()
    expected = 5.0 + (a.sqrt() - b.sqrt()).square().sum()
    found = frechet_distance(mean_a, a.square().sqrt().diag(), mean_b, b.diag())
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_distance_to_itself_is_zero_and_between_two_symmetric():
    a, b = statistics(1), statistics(2)
    assert frechet_distance(*a, *a).item() == pytest.approx(0, abs=1e-9 * a[1].trace().item())
    assert frechet_distance(*a, *b).item() == pytest.approx(frechet_distance(*b, *a).item(), rel=1e-9)


def test_moments_are_mean_and_unbiased_covariance():
    rows = torch.randn(30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, cov = moments(torch.tensor(30.0), rows.sum(0), rows.T @ rows)
    torch.testing.assert_close(mean, rows.mean(0))
    torch.testing.assert_close(cov, rows.T.cov())


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A small net and reference statistics that it made."""
    net = feature_net(tmp_path / "net.safetensors")
    reference_for(net, tmp_path / "reference.safetensors")
    return str(tmp_path / "net.safetensors"), str(tmp_path / "reference.safetensors")


def images(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


def value(metric: FrechetCifarNet, parts: list[Tensor]) -> float:
    metric.reset()
    for part in parts:
        metric.update(Batch(part, torch.zeros(len(part), dtype=torch.long)))
    return metric.compute().item()


def test_the_metric_is_the_distance_of_the_nets_features(files, tmp_path):
    net = feature_net(tmp_path / "again.safetensors")
    mean, cov = reference_for(net, tmp_path / "other.safetensors")
    rows = net.embed(images(40))[0].double()
    expected = frechet_distance(rows.mean(0), rows.T.cov(), mean, cov)
    assert value(FrechetCifarNet(*files), [images(40)]) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("sizes", [[1] * 40, [13, 27], [39, 1]])
def test_batches_and_their_order_do_not_matter(files, sizes):
    metric, whole = FrechetCifarNet(*files), images(40)
    expected = value(metric, [whole])
    parts = list(whole.split(sizes))
    assert value(metric, parts) == pytest.approx(expected, rel=1e-5)
    assert value(metric, parts[::-1]) == pytest.approx(expected, rel=1e-5)


def test_reset_forgets_everything(files):
    metric = FrechetCifarNet(*files)
    first = value(metric, [images(20)])
    assert value(metric, [images(20, seed=1)]) != first
    assert value(metric, [images(20)]) == first


def test_the_pictures_distance_to_their_own_statistics_is_zero(files, tmp_path):
    metric = FrechetCifarNet(*files)
    rows = metric.net[0].embed(images(600))[0].double()
    own = str(tmp_path / "own.safetensors")
    reference_for(metric.net[0], Path(own))
    metadata = {"net": _net_hash(metric)}
    save_file({"mean": rows.mean(0), "cov": rows.T.cov()}, own, metadata)
    assert value(FrechetCifarNet(files[0], own), list(images(600).split(77))) == pytest.approx(0, abs=1e-5)


def _net_hash(metric: FrechetCifarNet) -> str:
    from migm.runtime.files import tensors_hash

    return tensors_hash(metric.net[0].state_dict())


def test_fewer_than_two_images_are_refused_naming_the_key(files):
    with pytest.raises(UserError, match=r"evalset\.num_images"):
        value(FrechetCifarNet(*files), [images(1)])


def test_statistics_of_another_net_are_refused_naming_both_files(files, tmp_path):
    feature_net(tmp_path / "foreign.safetensors", seed=1)
    with pytest.raises(UserError, match=naming("evalset.reference", "reference.safetensors", "foreign.safetensors")):
        FrechetCifarNet(str(tmp_path / "foreign.safetensors"), files[1])


@pytest.mark.parametrize(("broken", "key"), [(0, "weights"), (1, "evalset.reference")])
@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_missing_and_truncated_files_are_refused_by_name(files, broken, key, how):
    path = Path(files[broken])
    data = path.read_bytes()
    path.unlink()
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    with pytest.raises((UserError, FileNotFoundError), match=naming(key, path.name)):
        FrechetCifarNet(*files)


def test_the_reference_is_named_by_its_content(files, tmp_path):
    first = FrechetCifarNet(*files).reference_hash
    net = feature_net(tmp_path / "net2.safetensors")
    reference_for(net, tmp_path / "other.safetensors", seed=1)
    assert FrechetCifarNet(files[0], str(tmp_path / "other.safetensors")).reference_hash != first
    assert FrechetCifarNet(*files).reference_hash == first


@pytest.mark.parametrize("narrower", [1.0, 0.8])
def test_few_images_are_compared_without_their_bias(files, narrower):
    """Normal features with a known distance: the plain one is too large at few images, the fitted one is not."""
    plain, fitted = FrechetCifarNet(*files), FrechetCifarNetInf(*files)
    mean, cov = plain.reference["mean"], plain.reference["cov"]
    right = frechet_distance(mean, narrower**2 * cov, mean, cov).item()
    root = narrower * torch.linalg.cholesky(cov + 1e-12 * torch.eye(len(cov)))
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(8):
        rows = torch.randn(4 * len(cov), len(cov), dtype=torch.float64, generator=generator) @ root.T + mean
        for metric in (plain, fitted):
            metric.reset()
            for part in rows.split(50):
                metric.add(part)
        found.append((plain.compute().item(), fitted.compute().item()))
    biased, free = (sum(values) / len(found) for values in zip(*found, strict=True))
    assert biased > right + 0.05 * cov.trace()
    assert free == pytest.approx(right, abs=0.2 * (biased - right))


def test_the_fitted_distance_does_not_depend_on_batches_and_refuses_too_few_images_beforehand(files):
    metric, whole = FrechetCifarNetInf(*files), images(80)
    expected = value(metric, [whole])
    state = metric.state()
    assert value(metric, [whole[:30], whole[30:]]) == pytest.approx(expected, rel=1e-9)
    metric.reset()
    metric.put_before(state)
    assert metric.compute().item() == pytest.approx(expected, rel=1e-9)
    least = 3 * metric.net[0].channels // 2
    assert result_name(metric, least) == f"fd_cifarnet_inf_{least}"
    with pytest.raises(UserError, match=naming("evalset.num_images", str(least - 1), str(least))):
        result_name(metric, least - 1)
