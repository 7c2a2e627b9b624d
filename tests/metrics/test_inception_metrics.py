"""FID and its relatives equal the reference packages on the same random Inception, in pieces and after a stop too."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch_fidelity
from cleanfid import fid as cleanfid
from PIL import Image
from tiny_parts import naming
from torch import Tensor
from torch.utils.data import TensorDataset
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from migm.metrics.inception import FID, InceptionMetric, InceptionScore
from migm.metrics.metric import Batch, result_name
from migm.metrics.neighbours import KID, Neighbours, Quantity, density_or_coverage
from migm.metrics.networks.inception import CHILDREN, PROTOCOLS, Inception, load_inception, stretched
from migm.runtime.errors import UserError
from migm.runtime.files import file_hash

COUNT = 24


def photos(seed: int, count: int = COUNT, contrast: int = 10) -> Tensor:
    """Noise of two pixels' size whose brightness, contrast and colours depend on the seed and differ between images."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.rand(count, 3, 1, 1, generator=generator) * (100 + 2 * contrast * seed) + 30
    noise = torch.randn(count, 3, 12, 12, generator=generator) * (15 + contrast * seed)
    noise = noise.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return (level + noise).clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(load_inception.__wrapped__(random_weights=True).net.state_dict(), path)
    return path


@pytest.fixture(scope="module", autouse=True)
def extracted_once() -> Iterator[None]:
    """The same batch goes through the same network once in this file, which would take minutes otherwise."""
    extract, known = Inception.features, {}

    def features(self, images, protocol):
        key = (self.hash, protocol, images.numpy().tobytes())
        if key not in known:
            known[key] = extract(self, images, protocol)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Inception, "features", features)
        yield


@pytest.fixture(scope="module")
def inception(weights) -> Callable[[str], Inception]:
    return lambda feature: load_inception(str(weights), file_hash(weights), True, feature=feature)


def fed(metric: InceptionMetric, images: Tensor, size: int = 8) -> InceptionMetric:
    for part in images.split(size):
        metric.update(Batch(part, torch.zeros(len(part), dtype=torch.long)))
    return metric


@pytest.fixture
def measured(inception, tmp_path) -> Callable[..., float]:
    """The value of a metric class of `generated` against `real`, through a reference file on disk."""

    def measure(kind, generated, real, protocol="val50k", feature="64", **options):
        path = tmp_path / f"{kind.__name__}.npz"
        fed(kind(inception=inception(feature), protocol=protocol, **options), real).made_reference().save(path)
        metric = kind(inception=inception(feature), protocol=protocol, reference=str(path), **options)
        return fed(metric, generated).compute().item()

    return measure


class Images(TensorDataset):
    def __getitem__(self, index):
        return super().__getitem__(index)[0]


def theirs(weights: Path, generated: Tensor, real: Tensor | None = None, feature: str = "64", **wanted) -> dict:
    layers = {f"feature_layer_{name}": feature for name in ("fid", "kid", "prc") if name in wanted}
    return torch_fidelity.calculate_metrics(
        input1=Images(generated),
        input2=None if real is None else Images(real),
        feature_extractor="inception-v3-compat",  # also for precision and recall, whose default is VGG16
        feature_extractor_weights_path=str(weights),
        batch_size=8,
        cuda=False,
        cache=False,
        verbose=False,
        **layers,
        **wanted,
    )


@pytest.mark.parametrize("feature", CHILDREN)
def test_features_and_logits_are_torch_fidelitys_to_the_bit(inception, weights, feature):
    names = [feature, "logits_unbiased"] if feature == "2048" else [feature]
    reference = FeatureExtractorInceptionV3("reference", names, feature_extractor_weights_path=str(weights))
    ours, images = inception(feature), photos(1, 2)
    found = ours.features(images, PROTOCOLS["val50k"])
    expected = reference(images)
    assert torch.equal(found, expected[0])
    assert found.std() > 0.01
    if feature == "2048":
        assert torch.equal(ours.logits(found), expected[1])


def test_fid_is_torch_fidelitys(measured, weights):
    generated, real = photos(1), photos(2)
    expected = theirs(weights, generated, real, fid=True)["frechet_inception_distance"]
    assert expected > 0.01
    assert measured(FID, generated, real) == pytest.approx(expected, rel=1e-4)


def test_kid_precision_and_recall_are_torch_fidelitys(measured, weights):
    generated, real = torch.cat([photos(1, 12) // 3 * 2, 255 - photos(3, 12) // 2]), photos(2)
    expected = theirs(weights, generated, real, kid=True, prc=True, kid_subset_size=15)
    kid = measured(KID, generated, real, subset_size=15)
    assert kid == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4)
    for quantity in ("precision", "recall"):
        found = measured(Neighbours, generated, real, quantity=quantity)
        assert found == pytest.approx(expected[quantity], abs=1e-6)
        assert 0.05 < found < 0.95


def test_the_inception_score_is_torch_fidelitys(inception, weights):
    images = photos(1, 8)
    expected = theirs(weights, images, isc=True, isc_splits=2)["inception_score_mean"]
    found = fed(InceptionScore(inception("2048"), "val50k", splits=2), images).compute().item()
    assert expected > 1.0001
    assert found - 1 == pytest.approx(expected - 1, rel=1e-4)


@pytest.mark.slow
def test_with_all_2048_channels_and_few_images_everything_is_torch_fidelitys(measured, inception, weights):
    generated, real = torch.cat([photos(1, 6) // 3 * 2, 255 - photos(3, 6) // 2]), photos(2, 12)
    wanted = {"fid": True, "kid": True, "prc": True, "isc": True, "isc_splits": 4, "kid_subset_size": 8}
    expected = theirs(weights, generated, real, "2048", **wanted)
    fid = measured(FID, generated, real, feature="2048")
    assert fid == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
    kid = measured(KID, generated, real, feature="2048", subset_size=8)
    assert kid == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4)
    for quantity in ("precision", "recall"):
        assert measured(Neighbours, generated, real, feature="2048", quantity=quantity) == expected[quantity]
    score = fed(InceptionScore(inception("2048"), "val50k", splits=4), generated).compute().item()
    assert score == pytest.approx(expected["inception_score_mean"], rel=1e-4)


def test_the_clean_protocol_is_clean_fids(measured, inception, tmp_path):
    generated, real = photos(1), photos(2)
    for name, images in (("generated", generated), ("real", real)):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / name / f"{i:03d}.png")
    layers = inception("64").layers

    def extract(x):
        return layers((x - 128) / 128).mean((2, 3))

    folders = str(tmp_path / "generated"), str(tmp_path / "real")
    settings = {"mode": "clean", "custom_feat_extractor": extract, "num_workers": 0, "verbose": False}
    expected = cleanfid.compute_fid(*folders, device=torch.device("cpu"), batch_size=8, **settings)
    found = measured(FID, generated, real, "clean")
    assert found == pytest.approx(expected, rel=1e-4)
    assert found != pytest.approx(measured(FID, generated, real, "val50k"), rel=1e-2)


def test_the_papers_protocol_stretches_both_sides(measured):
    generated, real = photos(1), photos(2)
    found = measured(FID, generated, real, "migm_paper")
    assert found == pytest.approx(measured(FID, stretched(generated), stretched(real), "val50k"), rel=1e-9)
    assert found != pytest.approx(measured(FID, generated, real, "val50k"), rel=1e-2)


def test_stretching_maps_each_image_to_the_full_range_rounded_down():
    image = torch.tensor([10, 11, 26, 60], dtype=torch.uint8).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    flat = torch.full((1, 3, 2, 2), 7, dtype=torch.uint8)
    found = stretched(torch.cat([image, flat]))
    assert found[0, 0].flatten().tolist() == [0, 5, 81, 255]  # of 0, 5.1, 81.6, 255
    assert found[1].unique().tolist() == [0]


def test_density_and_coverage_follow_their_definition():
    generator = torch.Generator().manual_seed(0)
    real, generated = torch.randn(2, 40, 3, generator=generator).unbind()
    generated = generated * 0.7 + 0.5
    inside, covered = 0, 0
    for centre in real:
        radius = sorted((centre - other).norm().item() for other in real)[3]  # the first is itself
        within = [(centre - image).norm().item() < radius for image in generated]
        inside += sum(within)
        covered += any(within)
    assert density_or_coverage(generated, real, 3) == pytest.approx((inside / (3 * 40), covered / 40))
    assert density_or_coverage(generated + 100, real, 3) == (0, 0)


@pytest.mark.parametrize("quantity", get_args(Quantity))
def test_real_images_have_perfect_fidelity_and_variety(measured, quantity):
    found = measured(Neighbours, photos(1), photos(1), quantity=quantity)
    assert found == pytest.approx(1, abs=0.1 if quantity == "density" else 1e-6)


def test_the_papers_neighbours_are_averaged_over_chunks(measured, monkeypatch):
    generated, real = torch.cat([photos(1, 12), photos(3, 12) // 2]), photos(2)
    monkeypatch.setattr("migm.metrics.neighbours.ROWS", 12)
    parts = [stretched(generated[i : i + 12]) for i in (0, 12)], [stretched(real[i : i + 12]) for i in (0, 12)]
    halves = [measured(Neighbours, g, r, quantity="recall") for g, r in zip(*parts, strict=True)]
    found = measured(Neighbours, generated, real, "migm_paper", quantity="recall")
    assert found == pytest.approx(sum(halves) / 2, abs=1e-6)
    assert halves[0] != halves[1]


def sums(metric: FID) -> tuple[Tensor, ...]:
    return metric.count, metric.total, metric.outer


def half_of(rank: int, address: Path, weights: str, digest: str, reference: str, results: Path) -> None:
    """One of two processes: its half of the batches, then the sums of both."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{address}", rank=rank, world_size=2)
    metric = FID(load_inception(weights, digest, True, feature="64"), "val50k", reference=reference)
    for number, part in enumerate(photos(1).split(8)):
        if number % 2 == rank:
            metric.update(Batch(part, torch.zeros(len(part), dtype=torch.long)))
    metric.sync()
    states = [state.clone() for state in sums(metric)]
    torch.save([metric.compute(), *states], results / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", [FID, KID])
def test_two_halves_merge_into_the_whole(inception, measured, tmp_path, kind):
    options = {"subset_size": 15} if kind is KID else {}
    expected = measured(kind, photos(1), photos(2), **options)
    reference = str(tmp_path / f"{kind.__name__}.npz")
    halves = [kind(inception("64"), "val50k", reference=reference, **options) for _ in range(2)]
    for half, images in zip(halves, (photos(1)[:16], photos(1)[16:]), strict=True):
        fed(half, images)
    halves[1].merge_state(halves[0])  # that of an earlier part goes before
    assert halves[1].compute().item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_two_processes_with_half_of_the_batches_each_find_the_same(inception, weights, tmp_path):
    reference = tmp_path / "real.npz"
    fed(FID(inception("64"), "val50k"), photos(2)).made_reference().save(reference)
    whole = fed(FID(inception("64"), "val50k", reference=str(reference)), photos(1))
    settings = (tmp_path / "address", str(weights), file_hash(weights), str(reference), tmp_path)
    mp.start_processes(half_of, settings, nprocs=2, start_method="spawn")
    for rank in range(2):
        value, *states = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert value.item() == pytest.approx(whole.compute().item(), rel=1e-9)
        for found, expected in zip(states, sums(whole), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", [FID, KID])
def test_a_stopped_measurement_goes_on_from_its_saved_state(inception, measured, tmp_path, kind):
    options = {"subset_size": 15} if kind is KID else {}
    expected = measured(kind, photos(1), photos(2), **options)
    reference = str(tmp_path / f"{kind.__name__}.npz")
    first = kind(inception("64"), "val50k", reference=reference, **options)
    fed(first, photos(1)[:16])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = kind(inception("64"), "val50k", reference=reference, **options)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert fed(second, photos(1)[16:]).compute().item() == pytest.approx(expected, rel=1e-9)


def test_metrics_of_a_protocol_share_one_pass_through_the_network(inception, monkeypatch):
    calls = []

    def features(_self, images, protocol):
        calls.append(protocol.name)
        return torch.zeros(len(images), 64)

    monkeypatch.setattr(Inception, "features", features)
    batch = Batch(photos(1, 4), torch.zeros(4, dtype=torch.long))
    for metric in (FID(inception("64"), "val50k"), KID(inception("64"), "val50k"), FID(inception("64"), "clean")):
        metric.update(batch)
    assert calls == ["val50k", "clean"]


@pytest.fixture
def reference(inception, tmp_path) -> Path:
    path = tmp_path / "real.npz"
    fed(FID(inception("64"), "val50k"), photos(2)).made_reference().save(path)
    return path


def test_a_reference_says_what_it_is_and_reads_back_exactly(inception, reference):
    metric = FID(inception("64"), "val50k", reference=str(reference))
    seen = fed(FID(inception("64"), "val50k"), photos(2))
    assert metric.real is not None
    assert (metric.real.n, metric.real.protocol, metric.real.extractor) == (COUNT, "val50k", inception("64").hash)
    assert torch.equal(metric.real.arrays["sigma"], seen.moments()[1])
    assert metric.reference_hash == f"{metric.real.hash}-{inception('64').hash}"
    with np.load(reference) as opened:
        assert opened["hash"].item() == metric.real.hash
        np.testing.assert_allclose(opened["mu"], seen.moments()[0].numpy())


def changed(reference: Path, **arrays: np.ndarray | None) -> None:
    with np.load(reference) as opened:
        kept = {**opened, **arrays}
    np.savez(reference, **{name: value for name, value in kept.items() if value is not None})


def test_statistics_of_others_serve_the_protocols_that_use_them(inception, reference, measured):
    changed(reference, n=None, protocol=None, extractor=None, hash=None)
    found = fed(FID(inception("64"), "adm", reference=str(reference)), photos(1)).compute().item()
    assert found == pytest.approx(measured(FID, photos(1), photos(2)), rel=1e-9)
    with pytest.raises(UserError, match=naming("real.npz", "protocol unknown, not val50k")):
        FID(inception("64"), "val50k", reference=str(reference))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: changed(path, mu=np.zeros(64)), ["real.npz", "changed or damaged"]),
        (lambda path: changed(path, n=np.array(50000)), ["real.npz", "changed or damaged"]),
        (lambda path: changed(path, sigma=None), ["real.npz", "has no sigma"]),
        (lambda path: path.write_bytes(path.read_bytes()[:900]), ["real.npz", "not a complete .npz"]),
        (lambda path: path.unlink(), ["real.npz", "no such file"]),
    ],
    ids=["values", "count", "array", "truncated", "missing"],
)
def test_damaged_and_missing_references_are_refused_by_name(inception, reference, damage, words):
    damage(reference)
    with pytest.raises((UserError, FileNotFoundError), match=naming("metric.*.reference=", *words)):
        FID(inception("64"), "val50k", reference=str(reference))


def test_references_of_another_protocol_network_or_width_are_refused(inception, reference):
    with pytest.raises(UserError, match=naming("protocol val50k, not migm_paper")):
        FID(inception("64"), "migm_paper", reference=str(reference))
    torch.manual_seed(1)
    with pytest.raises(UserError, match=naming("Inception", inception("64").hash)):
        FID(load_inception.__wrapped__(random_weights=True, feature="64"), "val50k", reference=str(reference))
    changed(reference, n=None, protocol=None, extractor=None, hash=None)
    with pytest.raises(UserError, match="64 channels, not 192"):
        FID(inception("192"), "adm", reference=str(reference))


def test_names_say_protocol_count_and_every_departure(inception):
    full, small = inception("2048"), inception("64")
    torch.manual_seed(0)
    assert result_name(FID(full, "adm"), 50_000) == "fid_adm_50000"
    assert result_name(FID(full, "adm", allow_small_n=True), 10_000) == "fid_adm_10000"
    assert result_name(FID(full, "migm_paper", allow_small_n=True), 9_999) == "fid_migm_paper_small_n_9999"
    assert result_name(KID(small, "clean"), 10_000) == "kid_clean_layer64_10000"
    random = load_inception.__wrapped__(random_weights=True)
    assert result_name(InceptionScore(random, "val50k"), 10_000) == "inception_score_val50k_random_weights_10000"
    with pytest.raises(UserError, match=naming("9999", "10,000", "allow_small_n")):
        result_name(FID(full, "adm"), 9_999)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda net: InceptionScore(net, "val50k"), ["feature=64"]),
        (lambda net: fed(FID(net, "val50k"), photos(1, 4)).compute(), ["reference=null"]),
        (lambda net: fed(FID(net, "val50k"), photos(1, 1)).moments(), ["at least 2 images"]),
        (lambda net: fed(FID(net, "adm"), photos(1, 4)).made_reference(), ["fid_adm", "downloaded, not made"]),
    ],
)
def test_impossible_requests_are_refused_by_key(inception, make, words):
    with pytest.raises(UserError, match=naming(*words)):
        make(inception("64"))


@pytest.fixture
def no_network(monkeypatch) -> Iterator[None]:
    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    return None


def test_offline_a_missing_weights_file_is_named_with_its_source(no_network, tmp_path):
    with pytest.raises(FileNotFoundError, match=naming("inception.weights", "none.pth", "https://", "paths.offline")):
        load_inception(str(tmp_path / "none.pth"), offline=True)


def test_random_weights_and_a_file_that_is_there_need_no_network(no_network, weights):
    load_inception.__wrapped__(random_weights=True, feature="64")
    load_inception.__wrapped__(str(weights), file_hash(weights)[:8], feature="64")


def test_weights_with_another_checksum_or_of_another_network_are_refused(weights, tmp_path):
    with pytest.raises(UserError, match=naming("random.pth", "SHA-256", "6726825d")):
        load_inception(str(weights))
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=naming("other.pth", "does not fit")):
        load_inception(str(tmp_path / "other.pth"), "")


def test_a_download_goes_to_its_place_and_is_checked(monkeypatch, tmp_path, weights):
    asked = []

    def download(url, target, prefix):
        asked.append((url, prefix))
        Path(target).write_bytes(weights.read_bytes())

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    target, digest = tmp_path / "new" / "w.pth", file_hash(weights)
    load_inception(str(target), digest, feature="64")
    assert target.exists()
    assert [(url.startswith("https://"), prefix) for url, prefix in asked] == [(True, digest)]
