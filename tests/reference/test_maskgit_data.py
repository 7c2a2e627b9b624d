"""The released code's data: its records are read, expanded into pairs and written again as it does."""

import pytest
import torch
from recorded_noise import Recorded
from tiny_parts import naming, recorded_transformer, wrap, write_tar

from migm.runtime.errors import UserError
from migm.sampling.draw import GumbelMax
from migm.sampling.guidance import Ramp
from migm.sampling.loop import Sampling
from migm.sampling.sampler import Sampler
from migm.sampling.schedule import Increments
from migm.sampling.select import Confidence
from migm.trajectories.dataset import PairDataset, padded_positions
from migm.trajectories.maskgit_tars import MaskGITTars
from migm.trajectories.record import Recorder
from migm.trajectories.store import Store
from migm.trajectories.tars import FIELDS, export_tars, import_tars, read_images


@pytest.fixture(scope="module")
def made(read_vector):
    """The recorded tensors, the records among them, and the base that made them."""
    tensors, meta = read_vector("maskgit_makedata")
    keys = sorted({name.split("/")[0] for name in tensors if name.endswith(FIELDS)})
    base = wrap(recorded_transformer(*read_vector(meta["base_file"].removesuffix(".safetensors"))), "float32")
    return tensors, keys, base


@pytest.fixture
def tars(made, tmp_path):
    tensors, keys, _ = made
    records = [(key, {name: tensors[f"{key}/{name}"] for name in FIELDS}) for key in keys]
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "000000.tar", records)
    return tmp_path / "tars"


def header(made):
    return {"base": made[2].fingerprint(), "copies": 2, "num_steps": made[0][f"{made[1][0]}/feat.pth"].shape[0]}


@pytest.fixture
def store(made, tars, tmp_path):
    store = Store(tmp_path / "store", header(made))
    assert list(import_tars(tars, store, made[2], shard_images=1, dtype=torch.float32, make_layout=MaskGITTars)) == [
        1
    ] * (len(made[1]) // 2)
    return Store(tmp_path / "store")


def test_records_become_trajectories(made, store):
    tensors, keys, base = made
    length = base.spec.num_tokens
    for image, key in enumerate(key for key in keys if key.endswith("_cond")):
        shard = store.open(image)
        halves = [tensors[f"{k}/feat.pth"] for k in (key, key.replace("_cond", "_uncond"))]
        assert torch.equal(shard["features"][0], torch.stack(halves))
        assert torch.equal(shard["tokens"][0].long(), tensors[f"{key}/teacher_vq_ids.pth"][:length])
        assert torch.equal(shard["order"][0].long(), tensors[f"{key}/generation_order.pth"][:length])
        assert shard["conditions"].tolist() == [[[int(key.split("_")[2])], [base.transformer.num_classes]]]


def test_a_generation_with_the_recorded_draws_is_recorded_as_the_original_recorded_it(made):
    tensors, keys, base = made
    names = [key.split("_") for key in keys if key.endswith("_cond")]
    n, length, labels = header(made)["num_steps"], base.spec.num_tokens, torch.tensor([int(name[2]) for name in names])
    sampling = Sampling(n, n, Increments("arccos"), GumbelMax(), Confidence(7.0), Ramp(2.8))
    recorder, images = Recorder(torch.float32), torch.arange(len(labels))
    Sampler(base, sampling).tokens(labels, Recorded(tensors, "draw/"), [recorder])
    found = recorder.trajectories(images)
    for image, (batch, number, label, _) in enumerate(names):
        halves = [f"{batch}_{number}_{label}_{half}/" for half in ("cond", "uncond")]
        features = torch.stack([tensors[half + "feat.pth"] for half in halves])
        torch.testing.assert_close(found.features[image], features, rtol=2e-5, atol=2e-5)
        assert torch.equal(found.tokens[image].long(), tensors[halves[0] + "teacher_vq_ids.pth"][:length])
        assert torch.equal(found.order[image].long(), tensors[halves[0] + "generation_order.pth"][:length])
        assert found.conditions[image].tolist() == [[int(label)], [base.transformer.num_classes]]
    assert torch.equal(found.images, images)


def test_pairs_agree_with_the_original_expansion(made, store):
    tensors, keys, base = made
    expanded = sorted({tuple(name.split("/")[1:3]) for name in tensors if name.startswith("sample/")})
    assert expanded
    pairs, length, mask = PairDataset(store), base.spec.num_tokens, base.spec.vocab_size
    for key, s in expanded:
        sample = {n.rsplit("/", 1)[1]: v for n, v in tensors.items() if n.startswith(f"sample/{key}/{s}/")}
        image, half = divmod(keys.index(key), 2)
        batch = pairs.__getitems__([(image * 2 + half) * (pairs.num_steps - 1) + int(s)])
        positions, _ = padded_positions(batch.new, batch.width)
        current = sample["cur_token_ids"][:length]
        assert torch.equal(batch.features[0], sample["prev_feat"])
        assert torch.equal(batch.target[0], sample["tgt_feat"])
        assert torch.equal(batch.tokens.gather(1, positions)[0], sample["new_token_ids"])
        assert torch.equal(positions[0], sample["new_token_map"].nonzero()[:, 0])
        assert torch.equal(batch.tokens.where(~batch.masked, mask)[0], current)
        assert torch.equal(batch.masked[0], sample["tgt_vq_ids"][:length] != -100)


def test_mask_ratios_are_the_original_table_of_512_pixels(made):
    counts = torch.tensor(Increments("arccos").counts(1024, 15))
    assert torch.equal(1 - counts.cumsum(0)[:-1] / 1024, made[0]["mask_ratio_table_15"])


def test_an_export_holds_the_original_records(made, store, tmp_path):
    tensors, keys, base = made
    assert list(export_tars(store, tmp_path / "again", base, MaskGITTars)) == [len(keys) // 2]
    for image, (*_, halves) in enumerate(read_images(tmp_path / "again")):
        for key, fields in zip(keys[2 * image : 2 * image + 2], halves, strict=True):
            for name, value in fields.items():
                assert torch.equal(value, tensors[f"{key}/{name}"]), (key, name)
    with pytest.raises(UserError, match=naming("export_to", "already; choose an empty folder")):
        list(export_tars(store, tmp_path / "again", base, MaskGITTars))


def test_records_have_the_original_names(made, store):
    _, keys, base = made
    for image, key in enumerate(keys[::2]):
        batch, index = map(int, key.split("_")[:2])
        number = torch.tensor(10 * batch + index)  # the original generates 10 images at once
        record = {name: tensor[0] for name, tensor in store.open(image).items()} | {"images": number}
        assert [name for name, *_ in MaskGITTars(base).write(record)] == keys[2 * image : 2 * image + 2]


def test_an_import_goes_on_behind_the_last_shard(made, tars, tmp_path):
    partial = Store(tmp_path / "half", header(made))
    next(import_tars(tars, partial, made[2], shard_images=1, dtype=torch.bfloat16, make_layout=MaskGITTars))
    assert list(import_tars(tars, Store(tmp_path / "half"), made[2], 1, torch.bfloat16, MaskGITTars)) == [1]
    assert [int(Store(tmp_path / "half").open(i)["images"]) for i in range(2)] == [0, 1]


def test_features_of_another_base_are_refused(made, tars, tmp_path, make_base):
    other = make_base(dtype="float32")
    with pytest.raises(UserError, match=naming("000000.tar", "are not those of this base")):
        list(import_tars(tars, Store(tmp_path / "x", header(made)), other, 1, torch.bfloat16, MaskGITTars))


def test_another_number_of_steps_is_refused(made, tars, tmp_path):
    with pytest.raises(UserError, match=naming("features are (", "sampling.num_steps ask (9, ")):
        list(
            import_tars(
                tars, Store(tmp_path / "x", {**header(made), "num_steps": 9}), made[2], 1, torch.bfloat16, MaskGITTars
            )
        )


def drop_half(records):
    return records[:1]


def drop_field(records):
    return [(key, {name: value for name, value in fields.items() if name != FIELDS[2]}) for key, fields in records]


@pytest.mark.parametrize(
    ("change", "words"),
    [(drop_half, "has the halves ['cond']"), (drop_field, "lacks generation_order.pth")],
)
def test_incomplete_records_are_refused(made, tmp_path, change, words):
    tensors, keys, _ = made
    records = [(key, {name: tensors[f"{key}/{name}"] for name in FIELDS}) for key in keys[:2]]
    write_tar(tmp_path / "000000.tar", change(records))
    with pytest.raises(UserError, match=naming("000000.tar", words)):
        list(read_images(tmp_path))


def test_what_is_no_tar_and_what_holds_code_is_refused(tmp_path):
    with pytest.raises(UserError, match=naming("import_from", "no *.tar")):
        list(read_images(tmp_path))
    (tmp_path / "000000.tar").write_bytes(b"no tar")
    with pytest.raises(UserError, match=naming("000000.tar", "cannot be read")):
        list(read_images(tmp_path))
    with_code = dict.fromkeys(FIELDS, print)
    write_tar(tmp_path / "000000.tar", [(f"00000_000_1_{half}", with_code) for half in ("cond", "uncond")])
    with pytest.raises(UserError, match=naming("000000.tar", "cannot be read")):
        list(read_images(tmp_path))
