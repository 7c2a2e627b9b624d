"""FID and Inception Score on torch-fidelity's Inception, by named protocols."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from migm.metrics.files import Need
from migm.metrics.frechet import MomentsMetric, frechet_distance
from migm.metrics.metric import Batch, QualityMetric
from migm.metrics.networks.inception import PROTOCOLS, URL, Inception, ProtocolName
from migm.metrics.reference import Reference, load_reference
from migm.runtime.errors import UserError
from migm.runtime.extras import optional
from migm.runtime.kinds import Count


class InceptionMetric(QualityMetric):
    """A metric of Inception features, named `{quantity}_{protocol}`; departures from it are added to the name.

    `reference` is the file of statistics or features of real images. It is null while that file is being made.
    """

    quantity: str
    arrays: tuple[str, ...] = ()  # needed from the file of real images
    unit = ""
    min_images = 10_000
    count: Tensor

    def __init__(
        self, inception: Inception, protocol: ProtocolName, allow_small_n: bool = False, reference: str | None = None
    ):
        super().__init__()
        self.inception, self.protocol, self.allow_small_n = inception, PROTOCOLS[protocol], allow_small_n
        departures = [f"layer{inception.feature}"] * (inception.feature != "2048")
        departures += ["random_weights"] * inception.random_weights
        self.metric_name = "_".join([self.quantity, protocol, *departures])
        self.reference_hash, self.real = inception.hash, None
        if reference is not None:
            self.real = self._read(reference)
            self.reference_hash = f"{self.real.hash}-{inception.hash}"
        self.add_states()

    @staticmethod
    def needs(name: str, node: dict[str, Any]) -> list[Need]:
        files, protocol = [], PROTOCOLS[node["protocol"]]
        if not node["inception"]["random_weights"]:
            files.append(Need(Path(node["inception"]["weights"]), URL))
        if node.get("reference"):
            command = f"python -m migm.metric_reference metric=[{name}] {protocol.source}"
            files.append(Need(Path(node["reference"]), command if protocol.made else protocol.source))
        return files

    def add_states(self) -> None:
        """Declare what is kept of the features."""
        raise NotImplementedError

    def features(self, batch: Batch) -> Tensor:
        """Return features of the batch, float32 (b, channels), computed once for all metrics of a protocol."""
        key = f"{self.inception.hash}/{self.protocol.name}"
        return batch.extracted(key, lambda images: self.inception.features(images, self.protocol))

    def seen(self) -> dict[str, Tensor]:
        """Return the `arrays` of all images so far."""
        raise NotImplementedError

    def refuse_incomplete(self) -> None:
        if self.arrays:
            self.against()

    def refuse_unmade(self) -> None:
        """Raise UserError where the protocol's reference is a published file, not one that we make."""
        if not self.protocol.made:
            raise UserError(
                f"{self.metric_name} compares with {self.protocol.real}, which are downloaded, not made: "
                "see `python -m migm.needs`"
            )

    def made_reference(self) -> Reference:
        """Return all images so far as the reference of later measurements."""
        self.refuse_unmade()
        return Reference(self.seen(), int(self.count), self.protocol.name, self.inception.hash)

    def against(self) -> dict[str, Tensor]:
        """Return the arrays of the real images; UserError without a reference."""
        if self.real is None:
            raise UserError(f"metric.*.reference=null: {self.metric_name} needs a file of real images' statistics")
        return dict(self.real.arrays)

    def _read(self, path: str) -> Reference:
        real = load_reference(path, "metric.*.reference", self.arrays)
        origin = f"metric.*.reference={path}"
        if real.protocol not in ("" if self.protocol.foreign else self.protocol.name, self.protocol.name):
            raise UserError(f"{origin} was made by protocol {real.protocol or 'unknown'}, not {self.protocol.name}")
        if real.extractor not in ("", self.inception.hash):
            raise UserError(f"{origin} was made with Inception {real.extractor}, not with {self.inception.hash}")
        channels = real.arrays[self.arrays[0]].shape[-1]
        if channels != self.inception.channels:
            raise UserError(f"{origin} has {channels} channels, not {self.inception.channels}")
        return real


class FID(InceptionMetric, MomentsMetric):
    """Frechet Inception Distance."""

    quantity = "fid"
    arrays = ("mu", "sigma")
    higher_is_better = False

    def add_states(self) -> None:
        self.add_moments(self.inception.channels)

    def update(self, batch: Batch) -> None:
        self.add(self.features(batch))

    def seen(self) -> dict[str, Tensor]:
        return dict(zip(self.arrays, self.moments(), strict=True))

    def compute(self) -> Tensor:
        real = self.against()
        return frechet_distance(*self.moments(), real["mu"], real["sigma"])


class FeaturesMetric(InceptionMetric):
    """Base class that keeps the features of every image, in float32 on the CPU: 8 kB per image."""

    arrays = ("features",)
    kept: list[Tensor] | Tensor

    def add_states(self) -> None:
        self.add_state("kept", [], dist_reduce_fx="cat", persistent=True)
        self.add_sums("count")

    def update(self, batch: Batch) -> None:
        assert isinstance(self.kept, list)
        features = self.features(batch).cpu()
        self.kept.append(features)
        self.count += len(features)

    def all_features(self) -> Tensor:
        """Return features (n, channels) in the order of the images; UserError with fewer than 2 images."""
        if self.count < 2:
            raise UserError(f"{self.metric_name} needs at least 2 images (evalset.num_images)")
        return dim_zero_cat(self.kept)

    def seen(self) -> dict[str, Tensor]:
        return {"features": self.all_features()}


class InceptionScore(FeaturesMetric):
    """Inception Score over `splits` parts, shuffled and averaged by torch-fidelity."""

    quantity = "inception_score"
    arrays = ()
    higher_is_better = True

    def __init__(self, inception: Inception, protocol: ProtocolName, allow_small_n: bool = False, splits: Count = 10):
        super().__init__(inception, protocol, allow_small_n)
        if inception.feature != "2048":
            raise UserError(f"inception.feature={inception.feature}: the Inception Score needs 2048")
        self.splits = splits

    def compute(self) -> Tensor:
        score = optional("torch_fidelity.metric_isc").isc_features_to_metric
        logits = self.inception.logits(self.all_features())
        return torch.tensor(score(logits, self.splits)["inception_score_mean"], dtype=torch.float64)
