"""Import and export trajectories in the released code's layouts: WebDataset tars with two records an image.

There is one record for each guidance half. A record `{image}_{cond|uncond}` has the files `feat.pth` (n, t, c),
`teacher_vq_ids.pth` (t,) and `generation_order.pth` (t,). Names, ids and order differ between bases: `data.tars` is the
class of the base's `TarLayout`, or null for a base without released code.
"""

import io
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from migm.bases.base import Base, Moment
from migm.runtime.errors import UserError
from migm.runtime.files import replacing
from migm.runtime.launch import launched
from migm.runtime.owned import refuse_filled
from migm.runtime.reading import files_of
from migm.trajectories.record import Trajectories, packed, padded
from migm.trajectories.replay import stored_features
from migm.trajectories.store import Store

FIELDS = ("feat.pth", "teacher_vq_ids.pth", "generation_order.pth")
KINDS = ("cond", "uncond")

Record = dict[str, Tensor]


class Image(NamedTuple):
    """The content that both records of an image share; features are apart."""

    number: int  # in the run
    tokens: Tensor  # (l,)
    order: Tensor  # (l,)
    conditions: list[Tensor]  # (q,) for each half, as the base encodes inputs


class TarLayout(Protocol):
    """The layout of a base's records; the constructor takes the base."""

    file: str  # format of a tar's name, filled with its number
    images_a_tar: int
    dtype: torch.dtype  # of features

    def read(self, origin: str, name: str, count: int, halves: list[Record]) -> Image:
        """Return the image `name` from the records of its halves; `count` is its number in the tars, from 0 on.

        Raises a UserError that begins with `origin` if the records do not suit the base.
        """
        ...

    def write(self, image: Record) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield the name, ids (t,) and order (t,) of both records of a stored image."""
        ...


MakeLayout = Callable[[Any], TarLayout]  # a layout class, called with the base


def layout_of(make: MakeLayout | None, base: Base, store: Store, key: str) -> TarLayout:
    """Return the layout for `base`; refusals name `key`.

    Refused are a base without a layout, a store without both guidance halves, and several processes.
    """
    if make is None:
        raise UserError(f"{key}: data.tars=null, so there is no layout that {type(base).__name__} could share")
    if store.header["copies"] != len(KINDS):
        raise UserError(f"{key}: tars hold both guidance halves; choose a sampling.guidance")
    if launched()[1] > 1:
        raise UserError(f"{key}: {launched()[1]} processes were started; use one")
    return make(base)


def refuse_other_base(base: object, wanted: type) -> None:
    """Raise a UserError if `base` is not of the class that a layout is for."""
    if not isinstance(base, wanted):
        raise UserError(
            f"data.tars lays out the tars of a {wanted.__name__}, this base is a {type(base).__name__}; choose the "
            "class for its released code, or null where there is none"
        )


def read_images(folder: Path, first: int = 0) -> Iterator[tuple[str, str, list[Record]]]:
    """Yield the tar, name and both halves of the images from number `first` on; the conditional half comes first.

    The fields of other images are not read.
    """
    tars, number = files_of(folder, ".tar"), -1
    if not tars:
        raise UserError(f"import_from={folder}: no *.tar here")
    for tar in tars:
        try:
            with tarfile.open(tar) as file:
                for image, halves in _contents(file, tar).items():
                    number += 1
                    if number >= first:
                        yield str(tar), image, [_fields(file, halves[kind]) for kind in KINDS]
        except (tarfile.TarError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise UserError(f"{tar} cannot be read as trajectories ({str(error).splitlines()[0]})") from error


def _contents(file: tarfile.TarFile, tar: Path) -> dict[str, dict[str, dict[str, tarfile.TarInfo]]]:
    """Return the tar's members by image, half and field; only headers are read."""
    images: dict[str, dict[str, dict[str, tarfile.TarInfo]]] = {}
    for member in file.getmembers():
        key, _, field = member.name.partition(".")
        image, _, kind = key.rpartition("_")
        images.setdefault(image, {}).setdefault(kind, {})[field] = member
    for image, halves in images.items():
        if set(halves) != set(KINDS):
            raise UserError(f"{tar}: {image} has the halves {sorted(halves)} instead of {' and '.join(KINDS)}")
        for kind, fields in halves.items():
            if missing := set(FIELDS) - set(fields):
                raise UserError(f"{tar}: record {image}_{kind} lacks {min(missing)}")
    return images


def _fields(file: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> Record:
    fields = {}
    for field in FIELDS:
        opened = file.extractfile(members[field])
        data = io.BytesIO(opened.read() if opened else b"")
        fields[field] = torch.load(data, map_location="cpu", weights_only=True)
    return fields


def import_tars(
    folder: str | Path,
    store: Store,
    base: Base,
    shard_images: int,
    dtype: torch.dtype | None,
    make_layout: MakeLayout | None,
) -> Iterator[int]:
    """Append the images of a folder's tars that a store lacks; yield the number of images of each new shard.

    Features are stored in `dtype`, if any. To refuse trajectories of other weights, the first features of the first
    image read are compared with those of `base` for a fully masked image. If started again after a kill, the import
    continues after the last complete shard.
    """
    layout, parts, done = layout_of(make_layout, base, store, "import_from"), [], len(store)
    for count, (tar, name, halves) in enumerate(read_images(Path(folder), done), done):
        origin = f"{tar}, {name}"
        image = layout.read(origin, name, count, halves)
        for half in halves:
            check_shape(base, half, store.header["num_steps"], origin)
        if count == done:
            check_base(base, image, halves[0]["feat.pth"], origin)
        parts.append(trajectory(image, [half["feat.pth"] for half in halves], dtype))
        if len(parts) == shard_images:
            yield _append(store, parts)
    if parts:
        yield _append(store, parts)


def _append(store: Store, parts: list[Trajectories]) -> int:
    count = len(parts)
    store.append(Trajectories.join(parts))
    parts.clear()
    return count


def trajectory(image: Image, features: list[Tensor], dtype: torch.dtype | None) -> Trajectories:
    """Convert one image to a trajectory, with the features (n, t, c) of both halves in `dtype`, if any."""
    both = torch.stack(padded(features, -2, 0))
    return Trajectories(
        features=both[None, :, :, :0, :0] if dtype is None else packed(both, dtype)[None],
        tokens=image.tokens[None].to(torch.int32),
        order=image.order[None].to(torch.int16),
        conditions=torch.stack(padded(image.conditions, -1, -1))[None].to(torch.int32),
        images=torch.tensor([image.number]),
    )


def check_shape(base: Base, record: Record, num_steps: int, origin: str) -> None:
    """Refuse features of another shape than (`num_steps`, number of ids, channels of the base)."""
    shape, wanted = tuple(record["feat.pth"].shape), (num_steps, len(record["teacher_vq_ids.pth"]), base.spec.channels)
    if shape != wanted:
        raise UserError(f"{origin}: features are {shape}, this base and sampling.num_steps ask {wanted}")


def check_base(base: Base, image: Image, features: Tensor, origin: str) -> None:
    """Refuse features of a conditional half whose first step differs from that of `base`: a mean cosine below 0.99."""
    branch = base.branch(image.conditions[0][None].to(base.device))
    empty = torch.full((1, base.spec.num_tokens), base.spec.vocab_size, device=base.device)
    with torch.inference_mode():
        ours = base.features(empty, branch, Moment.first(1, len(features), base.device))
    likeness = float(cosine_similarity(ours[0].float().cpu(), features[0].float(), dim=-1).mean())
    if likeness < 0.99:  # half precision leaves more than 0.999
        raise UserError(f"{origin}: its features are not those of this base (cosine {likeness:.3f} at the first step)")


def export_tars(store: Store, folder: str | Path, base: Base, make_layout: MakeLayout | None) -> Iterator[int]:
    """Write a store as tars, each under a temporary name first; yield the number of images of each tar.

    If the store holds no features, `base` computes them.
    """
    layout, folder = layout_of(make_layout, base, store, "export_to"), Path(folder)
    refuse_filled(folder, "export_to")
    waiting: list[Record] = []
    written = 0
    for shard in range(len(store.shards)):
        data = store.open(shard)
        for row in range(len(data["images"])):
            waiting.append({name: tensor[row] for name, tensor in data.items()})
            if len(waiting) == layout.images_a_tar:
                yield _write_tar(folder / layout.file.format(written), waiting, layout, base)
                written += 1
    if waiting:
        yield _write_tar(folder / layout.file.format(written), waiting, layout, base)


def _write_tar(final: Path, images: list[Record], layout: TarLayout, base: Base) -> int:
    count = len(images)
    with replacing(final) as temporary, tarfile.open(temporary, "w") as tar:
        for image in images:
            both = stored_features(image, base)
            for features, (key, ids, order) in zip(both, layout.write(image), strict=True):
                values = (features[:, : len(ids)].to(layout.dtype), ids, order)
                for name, tensor in zip(FIELDS, values, strict=True):
                    data = io.BytesIO()
                    torch.save(tensor.clone(), data)  # cloned, since a view is saved with the whole tensor behind it
                    info = tarfile.TarInfo(f"{key}.{name}")
                    info.size = data.tell()
                    data.seek(0)
                    tar.addfile(info, data)
    images.clear()
    return count
