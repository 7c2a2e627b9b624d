"""MMaDA's transformer, prompts and sequences against the recorded ones."""

import json

import pytest
import torch
from mmada_recordings import close, recorded_mmada, say, tokens_of
from tiny_parts import moment
from torch.nn.functional import linear

from migm.bases.mmada import TaskMarkers, TaskPrompt
from migm.bases.words import Checksums


@pytest.fixture(scope="module")
def forward(read_vector):
    return read_vector("mmada_base_forward")[0]


@pytest.fixture(scope="module")
def base(read_vector, tmp_path_factory):
    return recorded_mmada(read_vector, tmp_path_factory.mktemp("mmada"))


@pytest.fixture(scope="module")
def attending(read_vector, tmp_path_factory):
    return recorded_mmada(read_vector, tmp_path_factory.mktemp("mmada"), attend_padding=True)


def test_features_logits_and_inner_activations_equal_the_recorded_ones(forward, base):
    net, mask = base.transformer, forward["attention_mask"].bool()
    x, ctx = net.prepare(forward["input_ids"], mask)
    for i, block in enumerate(net.blocks):
        close(x[mask], forward[f"hidden.{i}"][mask])
        x = block(x, ctx)
    features = net.finalize(x)
    for name in (f"hidden.{len(net.blocks)}", "last_feat"):
        close(features[mask], forward[name][mask])
    close(linear(features, net.ff_out.weight)[mask], forward["logits"][mask])


@pytest.mark.parametrize("attend", [False, True])
def test_the_base_gives_the_recorded_features_with_padding_left_out_or_attended(forward, base, attending, attend):
    ours, mask = (attending if attend else base), forward["attention_mask"].bool()
    wanted, logits = (forward[f"{name}_nomask" if attend else name] for name in ("last_feat", "logits"))
    tokens = torch.where(forward["hidden_codes"], ours.spec.vocab_size, tokens_of(ours, forward["input_ids"]))
    assert torch.equal(tokens, tokens_of(ours, forward["input_ids"]))
    branch = ours.encode(say(ours, forward["input_ids"], forward["attention_mask"]), guided=False)[0]
    features = ours.features(tokens, branch, moment(torch.ones(len(tokens))))
    assert (branch.mask is None) == attend
    for i, right in enumerate(wanted):
        kept = right if attend else right[mask[i]]
        close(features[i, : len(kept)], kept)
        head = ours.head(features[[i]].take_along_dim(branch.rows[[i], :, None], 1))
        columns = logits[i, ours.template.num_rows + ours.layout.places, ours.offset :][:, : ours.spec.vocab_size]
        close(head[0], columns)


def test_in_bfloat16_features_are_as_near_to_the_recorded_ones_as_those_are_to_float32(forward, read_vector, tmp_path):
    narrow = recorded_mmada(read_vector, tmp_path, dtype="bfloat16").transformer
    mask = forward["attention_mask"].bool()
    features = narrow(forward["input_ids"], mask)
    for ours, name in ((features, "last_feat"), (linear(features, narrow.ff_out.weight), "logits")):
        assert ours.dtype == torch.bfloat16
        recorded, exact = forward[f"{name}_bf16"].float()[mask], forward[name][mask]
        assert (ours.float()[mask] - recorded).norm() < 1.5 * (recorded - exact).norm()


def test_every_prompt_has_the_recorded_ids(read_vector):
    tensors, meta = read_vector("mmada_prompts")
    markers = TaskMarkers(**json.loads(meta["tokens"]))
    names = [name.removeprefix("text.") for name in tensors if name.startswith("text.")]
    assert len(names) > 5
    for padded in (False, True):
        template = TaskPrompt(Checksums(9), markers, int(meta["max_text_len"]), padded)
        q = template.num_rows
        for name in names:
            ids, kept = (tensors[f"{part}.{name}"][0, :q] for part in ("ids", "mask"))
            ours = template.around(tensors[f"text.{name}"].tolist())
            assert ours == (ids if padded else ids[kept.bool()]).tolist(), name
        empty = tensors["ids.empty"][0, :q]
        assert template.unconditional == (empty if padded else empty[tensors["mask.empty"][0, :q].bool()]).tolist()


@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize("attend", [False, True])
@pytest.mark.parametrize("run", ["guided", "guided_batch"])
def test_sequences_are_the_recorded_ones(read_vector, tmp_path, one_pass, attend, run):
    tensors, meta = read_vector(f"mmada_sample_{run}")
    base = recorded_mmada(read_vector, tmp_path, one_pass=one_pass, attend_padding=attend)
    prompts = say(base, tensors["cond_ids"], tensors["cond_mask"])
    for name in ("cond_ids", "ids.00", f"ids.{int(meta['timesteps']) // 2:02d}"):
        image = tensors[name][:, base.template.num_rows :]
        tokens = tokens_of(base, tensors[name])
        ids = []
        for branch in base.encode(prompts, guided=True):
            x, _ = base.prepare(tokens, branch, moment(torch.ones(len(tokens))))
            ids += list((x[:, :, None] == base.transformer.wte.weight).all(-1).int().argmax(-1))
        halves = [
            (half[: base.template.num_rows], kept)
            for kind in ("cond", "uncond")
            for half, kept in zip(tensors[f"{kind}_ids"], tensors[f"{kind}_mask"], strict=True)
        ]
        for ours, (prompt, kept), rows in zip(ids, halves, [*image, *image], strict=True):
            right = torch.cat([prompt if attend else prompt[kept[: len(prompt)].bool()], rows])
            assert torch.equal(ours[: len(right)], right)
            assert attend <= (len(ours) == len(right))
