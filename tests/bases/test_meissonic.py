"""Meissonic behind the base contract: shared rows, control, head, timestep, files, refusals."""

import dataclasses
import json
import shutil

import pytest
import torch
from clip_parts import save_random_encoder, save_words
from meissonic_parts import APART, CONFIG, JOINED, TEXT, meissonic_base
from safetensors.torch import load_file, save_file

from migm.bases.base import Moment, image_rows
from migm.bases.decoding import image_bytes
from migm.bases.footprint import footprint, held
from migm.bases.linear import QuantisedLinear
from migm.bases.meissonic import WEIGHTS, Meissonic
from migm.bases.meissonic_net import sinusoid
from migm.bases.tokenizer import ConvVQ
from migm.runtime.errors import UserError
from migm.sampling.draw import GumbelMax
from migm.sampling.guidance import Constant
from migm.sampling.loop import Sampling
from migm.sampling.sampler import Sampler
from migm.sampling.schedule import CosineFloor
from migm.sampling.select import Confidence

PROMPTS = ["a red bird", "a cat", "two dark blue boats on the river at night"]


@pytest.fixture(scope="module", params=[JOINED, APART], ids=["joined", "apart"])
def base(request):
    return meissonic_base(transformer=request.param)


def some_tokens(base, b=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, base.spec.vocab_size + 1, (b, base.spec.num_tokens), generator=generator)


def at(step, num_steps=8, b=3):
    return Moment.at(step, num_steps, torch.ones(b))


def test_spec_and_rows(base):
    cell = base.transformer.config.cell
    assert base.spec.grid == (8, 6)
    assert (base.spec.num_tokens, base.spec.positions_per_row, base.spec.num_layers) == (48, cell**2, 3)
    assert not base.spec.affine_head
    branch = base.encode(PROMPTS, guided=True)[0]
    q = TEXT.max_position_embeddings
    y, x = 5, 3
    assert int(branch.rows[0, y * 6 + x]) == q + y // cell * (6 // cell) + x // cell
    features = base.features(some_tokens(base), branch, at(2))
    assert features.shape == (6, q + 48 // cell**2, 32)


def test_both_halves_in_one_pass_are_the_two_alone(base):
    tokens, both = some_tokens(base), base.encode(PROMPTS, guided=True)[0]
    together = base.features(tokens, both, at(2))
    halves = [base.encode(PROMPTS, guided=False)[0], base.encode(["ugly"] * 3, guided=False)[0]]
    apart = torch.cat([base.features(tokens, half, at(2)) for half in halves])
    torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-10)
    again = base.features(tokens, base.branch(both.condition[:3]), at(2))  # as trajectories are read
    torch.testing.assert_close(again, together[:3], rtol=1e-10, atol=1e-10)


def test_the_head_gives_each_position_its_own_logits_and_rows_those_of_all_of_theirs(base):
    branch = base.encode(PROMPTS, guided=False)[0]
    features, s = base.features(some_tokens(base), branch, at(1)), base.spec.positions_per_row
    every = base.head(features)
    assert every.shape == (3, features.shape[1], *([s] if s > 1 else []), 24)
    positions = torch.tensor([[7, 0, 47], [20, 21, 26], [1, 2, 3]])
    logits = base.head(image_rows(features, branch, positions), positions)
    rows = every.view(3, -1, s, 24)
    for b in range(3):
        for k, position in enumerate(positions[b]):
            wanted = rows[b, branch.rows[b, position], base.places[position]]
            torch.testing.assert_close(logits[b, k], wanted, rtol=1e-10, atol=1e-10)
    chosen = torch.tensor([[9, 2], [0, 8], [7, 7]])
    here = base.head(features.gather(1, chosen[..., None].expand(-1, -1, 32)), rows=chosen)
    wanted = every.flatten(2).gather(1, chosen[..., None].expand(-1, -1, 24 * s)).view_as(here)
    torch.testing.assert_close(here, wanted, rtol=1e-10, atol=1e-10)


def test_new_tokens_of_a_cell_add_up_to_its_row(base):
    branch, tokens = base.encode(PROMPTS, guided=True)[0], some_tokens(base)
    positions = torch.arange(48).expand(3, -1)
    new = base.control(tokens, positions, branch)
    q = TEXT.max_position_embeddings
    assert new.prompt == q
    assert new.embeddings.shape == (6, q + 48, 32)
    assert torch.equal(new.rows[:, :q], torch.arange(q).expand(6, -1))
    net, rows = base.transformer, new.rows[:, q:]
    summed = torch.zeros(6, q + 48, 32, dtype=torch.float64)
    summed.scatter_add_(1, rows[..., None].expand(-1, -1, 32), new.embeddings[:, q:])
    x, _ = base.prepare(tokens, branch, at(0))
    made = net.project_to_hidden(net.project_to_hidden_norm(summed[:, q : x.shape[1]]))
    torch.testing.assert_close(made, x[:, q:], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(new.embeddings[:, :q], x[:, :q], rtol=1e-10, atol=1e-10)
    masked = base.control(tokens[:, :2], positions[:, :2], branch, torch.tensor([[True, False]] * 3))
    assert masked.mask[:, q:].tolist() == [[True, False]] * 6
    assert masked.mask[:, :q].all()


def test_the_timestep_counts_the_steps_that_are_left_and_changes_the_features(base):
    branch, tokens = base.encode(PROMPTS, guided=False)[0], some_tokens(base)
    assert base.timestep(at(0, 64)).tolist() == [63] * 3
    assert base.timestep(at(63, 64)).tolist() == [0] * 3
    features = [base.features(tokens, branch, at(step)) for step in (0, 1)]
    assert float((features[0] - features[1]).abs().max()) > 1e-3
    mixed = Moment(torch.ones(3), torch.tensor([0, 1, 0]), 8)
    torch.testing.assert_close(base.features(tokens, branch, mixed)[1], features[1][1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("t", "rounded"), [(63, 62976), (48, 48128), (47, 47104), (5, 4992)])
def test_in_bfloat16_the_product_with_1000_is_rounded_before_the_sinusoid(t, rounded):
    net = meissonic_base(dtype="bfloat16").transformer
    vector = torch.zeros(1, 32, dtype=torch.bfloat16)
    wanted = net.time_text_embed.timestep_embedder(sinusoid(torch.tensor([float(rounded)])).bfloat16())
    assert torch.equal(net.timed(vector, torch.tensor([t])), wanted)
    assert not torch.equal(sinusoid(torch.tensor([1000.0 * t])), sinusoid(torch.tensor([float(rounded)])))


def test_a_prompt_that_is_too_long_is_cut_and_review_says_so(base):
    assert base.review(["a cat"]) == ""
    assert base.review(PROMPTS).startswith("1 of 3 prompts are cut: the text encoder reads 5 tokens, and 'two dark")
    with pytest.raises(UserError, match=r"labels=\[3\]: this base draws what prompts say"):
        base.review(torch.tensor([3]))


def test_8_bit_linears_replace_those_of_the_blocks(base):
    plain, config = meissonic_base(dtype="float32"), base.transformer.config
    lower = meissonic_base(dtype="float32", linear="int8_weights", transformer=config)
    kinds = {name for name, part in lower.transformer.named_modules() if isinstance(part, QuantisedLinear)}
    assert len(kinds) == 8 + 2 * 2 + 2 * 5
    assert all("blocks." in name for name in kinds)
    assert lower.fingerprint() != lower.plain_fingerprint()
    assert meissonic_base(dtype="float32").fingerprint() == plain.fingerprint()
    branch, tokens = lower.encode(PROMPTS, guided=True)[0], some_tokens(lower)
    assert lower.features(tokens, branch, at(0)).isfinite().all()
    x, ctx = lower.prepare(tokens, branch, at(0))
    for block in lower.blocks:
        between = x + block.attn_delta(x, ctx, block.k(x, ctx), block.v(x, ctx))
        parts, x = between + block.mlp_delta(between, ctx), block(x, ctx)
        torch.testing.assert_close(parts, x)


def test_the_fingerprint_covers_all_that_features_depend_on():
    same = meissonic_base().fingerprint()
    assert meissonic_base().fingerprint() == same
    changes = [
        {"negative_prompt": ""},
        {"score": 5.0},
        {"crop": (0, 8)},
        {"width": 32},
        {"dtype": "float32"},
        {"seed": 1},
    ]
    changes += [{"text": dataclasses.replace(TEXT, max_position_embeddings=8)}]
    assert len({same, *(meissonic_base(**change).fingerprint() for change in changes)}) == len(changes) + 1


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as the published ones, of a random base, and that base."""
    folder = tmp_path_factory.mktemp("published")
    base = meissonic_base(dtype="float32")
    (folder / "transformer").mkdir()
    save_file({k: v.contiguous() for k, v in base.transformer.state_dict().items()}, folder / "transformer" / WEIGHTS)
    CONFIG.write(folder / "transformer" / "config.json")
    save_random_encoder(folder / "text_encoder", TEXT)
    save_words(folder / "tokenizer", TEXT.vocab_size)
    save_file(base.tokenizer.state_dict(), folder / "vq.safetensors")
    return folder, base


def loaded(folder, **changes):
    files = {
        "weights": folder,
        "text_encoder": folder / "text_encoder",
        "text_tokenizer": folder / "tokenizer",
        "tokenizer_weights": folder / "vq.safetensors",
    }
    parts = {"transformer": CONFIG, "text": TEXT, "height": 32, "width": 24, "dtype": "float32", "device": "cpu"}
    vq = ConvVQ(num_codes=24, code_channels=4, channels=8, depth=1)
    return Meissonic(**{**parts, "tokenizer": vq, **files, "negative_prompt": "ugly", **changes})


def test_a_checkpoint_in_the_published_layout_gives_the_same_features(published):
    folder, base = published
    ours = loaded(folder)
    branch, tokens = ours.encode(["a cat"], guided=True)[0], some_tokens(base, 1)
    # The random base reads prompts by another text encoder, so that it is given these rows.
    assert torch.equal(ours.features(tokens, branch, at(3, b=1)), base.features(tokens, branch, at(3, b=1)))
    images = torch.randint(0, 256, (1, 3, 32, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours.tokenize(images), base.tokenize(images))
    assert torch.equal(ours.decode(tokens.clamp(max=23)), base.decode(tokens.clamp(max=23)))


def refused(call, *args, **kwargs):
    with pytest.raises((UserError, FileNotFoundError)) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"height": 20}, ["base.height=20, base.width=24 must be multiples of 8"]),
        ({"width": 28}, ["base.width=28 must be multiples of 8"]),
        ({"native_height": 1024}, ["base.height=32", "height 1024 alone", "base.native_height=null"]),
        ({"crop": (0,)}, ["base.crop=[0] must be two numbers"]),
        ({"transformer": dataclasses.replace(CONFIG, codebook_size=23)}, ["base.transformer.codebook_size=23", "24"]),
        (
            {"transformer": dataclasses.replace(CONFIG, joint_attention_dim=16)},
            ["joint_attention_dim=16", "text.hidden_size=24"],
        ),
        (
            {"text": dataclasses.replace(TEXT, projection_dim=16)},
            ["pooled_projection_dim=32", "text.projection_dim=16"],
        ),
        ({"transformer": dataclasses.replace(CONFIG, num_layers=2)}, ["base.transformer.num_layers=2", "says 1", "=1"]),
        ({"transformer": APART}, ["base.transformer.downsample=False", "says True"]),
        ({"text": dataclasses.replace(TEXT, num_hidden_layers=3)}, ["base.text.num_hidden_layers=3", "says 2"]),
        ({"weights": "elsewhere"}, ["base.weights=elsewhere/transformer/config.json", "no such file"]),
        ({"text_encoder": "elsewhere"}, ["base.text_encoder=elsewhere/config.json", "no such file"]),
        ({"text_encoder": None}, ["base.text_encoder is not set"]),
        ({"text_tokenizer": "elsewhere"}, ["base.text_tokenizer=elsewhere", "no such file"]),
        ({"tokenizer_weights": None}, ["base.tokenizer_weights=None", "no such file"]),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(published, changes, words):
    message = refused(loaded, published[0], **changes)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"pooled_projection_dim": 16}, "base.transformer.pooled_projection_dim=16 must be the width"),
        ({"axes_dims_rope": (4, 6, 4)}, "base.transformer.axes_dims_rope=[4, 6, 4] must be three even numbers"),
        ({"axes_dims_rope": (5, 5, 6)}, "base.transformer.axes_dims_rope=[5, 5, 6] must be three even numbers"),
        ({"upsample": False}, "base.transformer.downsample=True, upsample=False"),
        ({"vocab_size": 24}, "base.transformer.vocab_size=24 must be above codebook_size=24"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(sizes, words):
    assert words in refused(dataclasses.replace, CONFIG, **sizes)


def damaged(folder, change, to):
    """A copy of a published folder whose transformer's tensors or config were changed."""
    shutil.copytree(folder, to)
    file = to / "transformer" / WEIGHTS
    tensors, config = load_file(file), json.loads((to / "transformer" / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, file)
    (to / "transformer" / "config.json").write_text(json.dumps(config))
    return to


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, c: t.pop("embed.conv.weight"), "lacks embed.conv.weight"),
        (lambda t, c: t.update({"guidance.weight": torch.ones(1)}), "has guidance.weight, which this model has not"),
        (
            lambda t, c: t.update({"embed.layer_norm.weight": torch.ones(5)}),
            "embed.layer_norm.weight is (5,) instead of (32,)",
        ),
        (lambda t, c: c.pop("num_layers"), "lacks 'num_layers'"),
    ],
)
def test_a_checkpoint_of_another_family_is_refused(published, tmp_path, change, words):
    message = refused(loaded, damaged(published[0], change, tmp_path / "copy"))
    assert words in message
    assert "transformer" in message


def test_guidance_before_the_head_is_refused(base):
    sampling = Sampling(4, 2, CosineFloor(), GumbelMax(), Confidence(1.0), Constant(2.0, "features"))
    message = refused(Sampler, base, sampling)
    assert message.startswith("sampling.guidance.on=features: the head of Meissonic is not affine")
    assert message.endswith("set sampling.guidance.on=logits")


def test_an_image_of_another_size_is_refused(base):
    assert "this base draws 24x32" in refused(base.tokenize, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_its_memory_is_said_before_it_is_built(base):
    cell = base.transformer.config.cell
    node = {
        "_target_": "migm.bases.meissonic.Meissonic",
        "transformer": {"_target_": "migm.bases.meissonic_config.MeissonicConfig", **vars(base.transformer.config)},
        "text": {"_target_": "migm.bases.clip_text.CLIPTextConfig", **vars(TEXT)},
        "tokenizer": {"_target_": "migm.bases.tokenizer.ConvVQ", "num_codes": 24, "code_channels": 4, "channels": 8},
        "height": 32,
        "width": 24,
        "dtype": "float64",
        "device": "cpu",
    }
    said = footprint(node)
    assert said is not None
    assert said.transformer == held(base.transformer)
    assert said.text == held(base.text.net)
    assert said.features == 2 * 48 // cell**2 * 32 * 8
    assert said.decoding == image_bytes(base.tokenizer, (8, 6))
