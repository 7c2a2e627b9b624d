"""Trajectories in the layout of the released MaskGIT-Shortcut code: WebDataset tars, one record per guidance half.

A record `{batch:05d}_{index:03d}_{label}_{cond|uncond}` has `feat.pth` (n, l + 1, c),
`teacher_vq_ids.pth` (l + 1) with the raw label or the id of "no class" at the end, and
`generation_order.pth` (l + 1) with -1 at the end (maskgit.md section 6).
"""

import io
import os
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from migm.bases.maskgit import MaskGIT
from migm.runtime import UserError
from migm.trajectories.record import Trajectories
from migm.trajectories.store import Store

FIELDS = ("feat.pth", "teacher_vq_ids.pth", "generation_order.pth")
KINDS = ("cond", "uncond")
RECORDS_A_TAR, BATCH = 40, 10  # as the released code writes them


def read_images(folder: Path, first: int = 0) -> Iterator[tuple[str, dict[str, Tensor], dict[str, Tensor]]]:
    """Origin and both halves, conditional first, of the images from number `first` on; those before are not read."""
    tars, number = sorted(folder.glob("*.tar")), -1
    if not tars:
        raise UserError(f"import_from={folder}: no *.tar here")
    for tar in tars:
        try:
            with tarfile.open(tar) as file:
                for image, halves in _contents(file, tar).items():
                    number += 1
                    if number >= first:
                        yield f"{tar}, {image}", _fields(file, halves["cond"]), _fields(file, halves["uncond"])
        except (tarfile.TarError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise UserError(f"{tar} cannot be read as trajectories ({str(error).splitlines()[0]})") from error


def _contents(file: tarfile.TarFile, tar: Path) -> dict[str, dict[str, dict[str, tarfile.TarInfo]]]:
    """Image -> half -> field -> where it lies; only headers are read."""
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


def _fields(file: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> dict[str, Tensor]:
    fields = {}
    for field in FIELDS:
        opened = file.extractfile(members[field])
        data = io.BytesIO(opened.read() if opened else b"")
        fields[field] = torch.load(data, map_location="cpu", weights_only=True)
    return fields


def import_tars(
    folder: str | Path, store: Store, base: MaskGIT, shard_images: int, dtype: torch.dtype
) -> Iterator[int]:
    """Append the images of a folder to a store that does not hold them yet; yields how many a shard took.

    The first image it reads is compared with `base` on an empty image, so that trajectories of
    other weights are refused. Started again after a kill, it goes on behind the last whole shard.
    """
    parts: list[Trajectories] = []
    done = len(store)
    for number, (origin, cond, uncond) in enumerate(read_images(Path(folder), done), done):
        if number == done:
            check_base(base, cond, store.header["num_steps"], origin)
        parts.append(trajectory(base, cond, uncond, number, dtype))
        if len(parts) == shard_images:
            yield _append(store, parts)
    if parts:
        yield _append(store, parts)


def _append(store: Store, parts: list[Trajectories]) -> int:
    count = len(parts)
    store.append(Trajectories(**{name: torch.cat([vars(part)[name] for part in parts]) for name in vars(parts[0])}))
    parts.clear()
    return count


def trajectory(
    base: MaskGIT, cond: dict[str, Tensor], uncond: dict[str, Tensor], number: int, dtype: torch.dtype
) -> Trajectories:
    """One image of the tars as ours."""
    length = base.spec.num_tokens
    ids, order = cond["teacher_vq_ids.pth"], cond["generation_order.pth"]
    return Trajectories(
        features=torch.stack([cond["feat.pth"], uncond["feat.pth"]]).to(dtype)[None],
        tokens=ids[None, :length].to(torch.int32),
        order=order[None, :length].to(torch.int16),
        labels=ids[-1:].long(),
        images=torch.tensor([number]),
    )


def check_base(base: MaskGIT, record: dict[str, Tensor], num_steps: int, origin: str) -> None:
    """Refuse a record whose first features are not those of `base`, or of another number of steps."""
    features, label = record["feat.pth"], record["teacher_vq_ids.pth"][-1:]
    wanted = (num_steps, base.spec.num_tokens + 1, base.spec.channels)
    if tuple(features.shape) != wanted:
        raise UserError(
            f"{origin}: features are {tuple(features.shape)}, this base and sampling.num_steps ask {wanted}"
        )
    empty = torch.full((1, base.spec.num_tokens), base.spec.vocab_size, device=base.device)
    with torch.inference_mode():
        ours = base.features(empty, base.encode(label, guided=False)[0], torch.ones(1, device=base.device))
    likeness = float(cosine_similarity(ours[0].float().cpu(), features[0].float(), dim=-1).mean())
    if likeness < 0.99:  # half precision leaves more than 0.999
        raise UserError(f"{origin}: its features are not those of this base (cosine {likeness:.3f} at the first step)")


def export_tars(store: Store, folder: str | Path, base: MaskGIT) -> Iterator[int]:
    """Write a store as tars of 20 images, each under a temporary name first; yields how many a tar took."""
    folder = Path(folder)
    waiting: list[dict[str, Tensor]] = []
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.tar")):
        raise UserError(f"export_to={folder} holds tars already; choose an empty folder")
    written = 0
    for shard in range(len(store.shards)):
        data = store.open(shard)
        for row in range(len(data["labels"])):
            waiting.append({name: tensor[row] for name, tensor in data.items()})
            if 2 * len(waiting) == RECORDS_A_TAR:
                yield _write_tar(folder, written, waiting, base)
                written += 1
    if waiting:
        yield _write_tar(folder, written, waiting, base)


def _write_tar(folder: Path, number: int, images: list[dict[str, Tensor]], base: MaskGIT) -> int:
    final, count = folder / f"{number:06d}.tar", len(images)
    temporary = final.with_suffix(".tar.tmp")
    with tarfile.open(temporary, "w") as tar:
        for image in images:
            for key, fields in records(image, base):
                for name, tensor in fields.items():
                    data = io.BytesIO()
                    torch.save(tensor.clone(), data)  # a view would be written with all it is a view of
                    info = tarfile.TarInfo(f"{key}.{name}")
                    info.size = data.tell()
                    data.seek(0)
                    tar.addfile(info, data)
    os.replace(temporary, final)
    images.clear()
    return count


def records(image: dict[str, Tensor], base: MaskGIT) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Both records of one stored image."""
    number, label = int(image["images"]), int(image["labels"])
    no_class = base.spec.vocab_size + 1 + base.transformer.num_classes
    for half, (kind, last) in enumerate(zip(KINDS, (label, no_class), strict=True)):
        yield (
            f"{number // BATCH:05d}_{number % BATCH:03d}_{label}_{kind}",
            {
                "feat.pth": image["features"][half].float(),
                "teacher_vq_ids.pth": torch.cat([image["tokens"].long(), torch.tensor([last])]),
                "generation_order.pth": torch.cat([image["order"].long(), torch.tensor([-1])]),
            },
        )
