"""DiMOO-Shortcut's recorded data: its records are read, computed again, expanded into pairs and written again."""

import json

import pytest
import torch
from test_dimoo_sampling import CLOSE, Recorded, sampling_of
from tiny_parts import write_tar

from migm.sampling.sampler import Sampler
from migm.trajectories.dataset import PairDataset, padded_positions
from migm.trajectories.dimoo_tars import DiMOOTars
from migm.trajectories.record import Recorder
from migm.trajectories.replay import stored_features, with_features
from migm.trajectories.store import Store
from migm.trajectories.tars import FIELDS, KINDS, export_tars, import_tars, read_images


@pytest.fixture(scope="module")
def base(recorded_dimoo):
    return recorded_dimoo()


@pytest.fixture(scope="module")
def made(read_vector):
    """Both records, conditional first: key and fields."""
    tensors, meta = read_vector("dimoo_makedata")
    keys = sorted(json.loads(meta["keys"]))
    assert [key.rpartition("_")[2] for key in keys] == list(KINDS)
    return [(key, {name: tensors[f"{key}.{name}"] for name in FIELDS}) for key in keys]


@pytest.fixture(scope="module")
def tars(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tars")
    write_tar(folder / "0_000000.tar", made)
    return folder


def imported(made, tars, base, folder, dtype):
    num_steps = len(made[0][1]["feat.pth"])
    store = Store(folder, {"base": base.fingerprint(), "copies": 2, "num_steps": num_steps})
    assert list(import_tars(tars, store, base, 1, dtype, DiMOOTars)) == [1]
    return Store(folder)


@pytest.fixture(scope="module")
def stores(made, tars, base, tmp_path_factory):
    """The recorded image, with its features and as tokens."""
    folder = tmp_path_factory.mktemp("stores")
    kinds = {"features": torch.float32, "tokens": None}
    return {name: imported(made, tars, base, folder / name, dtype) for name, dtype in kinds.items()}


def test_records_become_a_trajectory(made, stores, base):
    (key, cond), (_, uncond) = made
    shard = stores["features"].open(0)
    for half, record in enumerate((cond, uncond)):
        assert torch.equal(shard["features"][0, half, :, : record["feat.pth"].shape[1]], record["feat.pth"])
    ids, start = cond["teacher_vq_ids.pth"], len(cond["teacher_vq_ids.pth"]) - base.layout.num_rows
    codes = cond["generation_order.pth"] >= 0
    assert torch.equal(shard["tokens"][0].long() + base.offset, ids[codes])
    assert torch.equal(shard["order"][0], cond["generation_order.pth"][codes])
    assert shard["conditions"][0, 0].tolist() == ids[:start].tolist()
    assert [i for i in shard["conditions"][0, 1].tolist() if i >= 0] == base.unconditional.tolist()
    assert shard["images"].tolist() == [int(key.split("_")[0])]


def test_features_computed_from_tokens_are_the_recorded_ones(made, stores, base):
    shard = stores["tokens"].open(0)
    assert shard["features"].numel() == 0
    found = stored_features({name: tensor[0] for name, tensor in shard.items()}, base)
    for half, (_, record) in zip(found, made, strict=True):
        assert torch.allclose(half[:, : record["feat.pth"].shape[1]], record["feat.pth"], **CLOSE)
    stored, computed = (PairDataset(stores[name]) for name in ("features", "tokens"))
    every = torch.randperm(len(stored), generator=torch.Generator().manual_seed(0)).tolist()
    a, b = stored.__getitems__(every), with_features(computed.__getitems__(every), base)
    mask = base.branch(b.conditions).mask
    for name in ("features", "target"):
        assert torch.allclose(getattr(a, name)[mask], getattr(b, name)[mask], **CLOSE)


def test_our_own_run_of_the_recorded_image_is_its_trajectory(read_vector, stores, base):
    tensors, meta = read_vector("dimoo_sample_vanilla")
    recorder, sampling = Recorder(torch.float32), sampling_of(tensors, meta, "float32", "count")
    Sampler(base, sampling).tokens(["any"], Recorded(tensors), [recorder])
    ours, theirs = recorder.trajectories(torch.tensor([7])).tensors(), stores["features"].open(0)
    for name in ("tokens", "order", "conditions", "images"):
        assert torch.equal(ours[name], theirs[name]), name
    for half, condition in enumerate(theirs["conditions"][0]):
        rows = int((condition >= 0).sum()) + base.layout.num_rows
        assert torch.allclose(ours["features"][0, half, :, :rows], theirs["features"][0, half, :, :rows], **CLOSE)


def test_a_pair_is_the_original_expansion(read_vector, made, stores, base):
    sample, facts = read_vector("dimoo_train_sample")
    half = [key for key, _ in made].index(json.loads(facts["key"]))
    pairs = PairDataset(stores["features"])
    assert pairs.num_steps - 1 == int(facts["n_samples_per_image_branch"])
    assert base.spec.num_tokens == int(facts["n_total"])
    batch = pairs.__getitems__([half * (pairs.num_steps - 1) + int(facts["step"])])
    assert torch.equal(batch.features[0], sample["prev_feat"])
    assert torch.equal(batch.target[0], sample["tgt_feat"])
    branch = base.branch(batch.conditions)
    now = batch.tokens.where(~batch.masked, base.spec.vocab_size)
    sequence = branch.ids.scatter(1, branch.rows, base.layout.image_ids(now, base.spec.vocab_size))
    assert torch.equal(sequence[0], sample["cur_token_ids"])
    positions, mask = padded_positions(batch.new, batch.width)
    new = base.control(batch.tokens.gather(1, positions), positions, branch, mask)
    read = torch.ones_like(new.rows[0], dtype=torch.bool) if new.mask is None else new.mask[0]
    assert torch.equal(new.rows[0][read], sample["new_token_map"].nonzero()[:, 0])
    assert torch.equal(new.embeddings[0][read], base.transformer.wte(sample["new_token_ids"]))


@pytest.mark.parametrize("kept", ["features", "tokens"])
def test_an_export_holds_the_original_records(made, stores, base, tmp_path, kept):
    assert list(export_tars(stores[kept], tmp_path, base, DiMOOTars)) == [1]
    ((tar, name, halves),) = read_images(tmp_path)
    assert tar.endswith("0_000000.tar")
    for kind, fields, (key, recorded) in zip(KINDS, halves, made, strict=True):
        assert f"{name}_{kind}" == key
        assert fields["feat.pth"].dtype == torch.bfloat16  # as the original writes them
        for field in FIELDS[1:]:
            assert fields[field].dtype == recorded[field].dtype
            assert torch.equal(fields[field], recorded[field]), (key, field)
        if kept == "features":
            assert torch.equal(fields["feat.pth"], recorded["feat.pth"].bfloat16())
        else:
            assert torch.allclose(fields["feat.pth"].float(), recorded["feat.pth"], rtol=2**-8, atol=1e-4)
