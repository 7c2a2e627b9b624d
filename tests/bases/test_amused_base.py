"""aMUSEd behind the base contract: as diffusers' own pipeline draws, from its published layout, and refusals."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from amused_parts import CODES, load_published, random_amused, save_random, sizes, tokenizer
from clip_parts import TINY
from safetensors.torch import load_file, save_file
from tiny_parts import moment

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.refresh import Always
from migm.bases.amused_base import Amused
from migm.bases.layers import run_blocks
from migm.bases.uvit import random_net
from migm.runtime.errors import UserError
from migm.sampling.draw import GumbelMax
from migm.sampling.guidance import Constant
from migm.sampling.loop import Sampling
from migm.sampling.noise import SELECT
from migm.sampling.sampler import Sampler
from migm.sampling.schedule import CosineFloor, LinearFloor
from migm.sampling.select import Confidence

PROMPTS = ["a red bird on a lake", "b c"]
VANILLA = Accelerator(Always())


def sampling(num_steps=4, scale=9.0, schedule=None):
    select = Confidence(2.0, "linear", "float32")
    guidance = Constant(scale, "logits") if scale else None
    return Sampling(num_steps, num_steps, schedule or CosineFloor(True), GumbelMax(), select, guidance)


@pytest.fixture(scope="module", params=[False, True], ids=["one", "four"])
def published(request, tmp_path_factory):
    """A random base in its published layout, with one token a row of its layers or with four, and its parts."""
    torch.manual_seed(3)
    folder, net, text, vq = save_random(tmp_path_factory.mktemp("amused") / "published", request.param)
    side = vq.stride * sizes(request.param).sample_size
    base = load_published(folder, sizes(request.param), TINY, tokenizer(), height=side, width=side)
    return SimpleNamespace(folder=folder, net=net, text=text, vq=vq, base=base, downsample=request.param)


class Drawn:
    """The draws of a run of diffusers, taken as it made them."""

    def __init__(self, monkeypatch):
        from diffusers.schedulers import scheduling_amused

        self.exponentials, self.uniforms = [], []

        def multinomial(p, n, generator=None):
            e = torch.empty_like(p).exponential_(generator=generator)
            self.exponentials.append(e)
            return (p / e).argmax(-1, keepdim=True)

        def gumbel_noise(t, generator=None):
            u = torch.zeros_like(t).uniform_(0, 1, generator=generator)
            self.uniforms.append(u)
            return -torch.log((-torch.log(u.clamp(1e-20))).clamp(1e-20))

        monkeypatch.setattr(torch, "multinomial", multinomial)
        monkeypatch.setattr(scheduling_amused, "gumbel_noise", gumbel_noise)

    def gumbel(self, purpose, step, positions, width=None, dtype=torch.float64):
        if purpose == SELECT:
            if step == len(self.uniforms):  # the last step selects nothing
                return torch.zeros(positions.shape, dtype=dtype)
            u = self.uniforms[step].gather(1, positions).to(dtype)
            return -torch.log((-torch.log(u.clamp(1e-20))).clamp(1e-20))
        e = self.exponentials[step].view(len(positions), -1, width).double()
        return -e.gather(1, positions[..., None].expand(-1, -1, width)).log().to(dtype)


def pipeline(published):
    """diffusers' pipeline of the same weights."""
    from diffusers import AmusedScheduler, VQModel
    from diffusers.pipelines.deprecated.amused.pipeline_amused import AmusedPipeline
    from transformers import CLIPTokenizer

    widths = [len(block.resnets[0].conv1.weight) for block in published.vq.encoder.down_blocks]
    vq = VQModel(
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=CODES,
        norm_num_groups=4,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    )
    vq.load_state_dict(published.vq.state_dict())
    words = CLIPTokenizer.from_pretrained(published.folder / "tokenizer", local_files_only=True)
    words.model_max_length = TINY.max_position_embeddings
    scheduler = AmusedScheduler(mask_token_id=sizes(published.downsample).vocab_size - 1)
    made = AmusedPipeline(vq.eval(), words, published.text.eval(), published.net.eval(), scheduler)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize(("num_steps", "scale", "negative"), [(5, 10.0, ""), (12, 4.0, "d e"), (4, 1.0, "")])
def test_tokens_and_images_are_those_of_diffusers_pipeline(published, monkeypatch, num_steps, scale, negative):
    pipe, drawn, seen = pipeline(published), Drawn(monkeypatch), []
    images = pipe(
        PROMPTS,
        num_inference_steps=num_steps,
        guidance_scale=scale,
        negative_prompt=[negative] * len(PROMPTS),
        generator=torch.Generator().manual_seed(5),
        callback=lambda step, t, latents: seen.append(latents.flatten(1).clone()),
        output_type="np",
    ).images
    base = published.base
    monkeypatch.setattr(base, "negative_prompt", negative)
    records = []
    watch = [SimpleNamespace(on_step=records.append)]
    tokens = Sampler(base, sampling(num_steps, scale - 1), VANILLA).tokens(PROMPTS, drawn, watch)
    assert len(records) == len(seen) == num_steps
    for record, wanted in zip(records, seen, strict=True):
        assert torch.equal(base._ids(record.tokens), wanted), record.index
    pixels = torch.from_numpy((images * 255).round()).to(torch.uint8).permute(0, 3, 1, 2)
    assert torch.equal(base.decode(tokens), pixels)


def test_the_published_layout_gives_the_features_of_the_net_that_was_saved(published):
    base, net = published.base, published.net.eval()
    tokens = torch.randint(0, CODES + 1, (2, base.spec.num_tokens), generator=torch.Generator().manual_seed(0))
    branch = base.encode(PROMPTS, guided=True)[0]
    logits = base.head(base.features(tokens, branch, moment(torch.ones(2))))
    ids = base._ids(tokens).repeat(2, 1).unflatten(1, base.spec.grid)
    out = published.text(input_ids=branch.condition, output_hidden_states=True)
    micro = torch.tensor([[base.spec.grid[1] * 4.0, base.spec.grid[0] * 4.0, 0, 0, 6]]).expand(4, -1)
    wanted = net(ids, out.hidden_states[-2], out.text_embeds, micro)
    torch.testing.assert_close(logits, wanted.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)
    assert base.spec.grid == (8, 8) if published.downsample else (4, 4)


@pytest.mark.parametrize("downsample", [False, True])
def test_layers_by_parts_are_the_layers_and_features_come_in_any_order_of_branches(downsample):
    base = random_amused(downsample)
    tokens = torch.randint(0, CODES + 1, (2, base.spec.num_tokens), generator=torch.Generator().manual_seed(0))
    branch = base.encode(PROMPTS, guided=True)[0]
    x, ctx = base.prepare(tokens, branch, moment(torch.ones(2)))
    out = x
    for block in base.blocks:
        out = out + block.attn_delta(out, ctx, block.k(out, ctx), block.v(out, ctx))
        out = out + block.mlp_delta(out, ctx)
    torch.testing.assert_close(out, run_blocks(base.blocks, x, ctx))
    rows = torch.tensor([[3, 0, 7]]).expand(4, -1)
    some, at = base.prepare(tokens, branch, moment(torch.ones(2)), rows)
    assert torch.equal(some, x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1])))
    assert torch.equal(at.at(rows).text, ctx.text)
    features = base.features(tokens, branch, moment(torch.ones(2)))
    assert features.shape == (4, base.spec.num_tokens, base.spec.channels)
    ids = base.branch(branch.condition[:2])  # as stores keep them: without rows of the text
    torch.testing.assert_close(base.features(tokens, ids, moment(torch.ones(2))), features[:2], rtol=0, atol=1e-5)
    cells = base.encode(["a"], guided=False)[0].in_blocks[0]
    assert cells.bincount().tolist() == [base.spec.positions_per_row] * 16 == [4 if downsample else 1] * 16
    if downsample:
        assert cells.view(8, 8)[:2, :4].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]


def test_new_tokens_are_embedded_as_the_first_layers_do():
    base = random_amused(True)
    tokens = torch.randint(0, CODES, (1, base.spec.num_tokens))
    branch = base.encode(["a"], guided=True)[0]
    positions = torch.tensor([[5, 60, 1]])
    control = base.control(tokens.gather(1, positions), positions, branch, torch.tensor([[True, True, False]]))
    whole = base.transformer.embed(tokens.view(1, 8, 8)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(control.embeddings, whole[:, positions[0]].expand(2, -1, -1))
    assert control.rows.tolist() == [[5, 60, 1]] * 2
    assert control.mask.tolist() == [[True, True, False]] * 2


def test_the_head_is_affine_and_needs_no_positions():
    base = random_amused()
    a, b = torch.randn(2, 1, 3, base.spec.channels, dtype=torch.float64)
    torch.testing.assert_close(base.head(2 * a - b), 2 * base.head(a) - base.head(b))


@pytest.mark.parametrize("schedule", [CosineFloor(True), LinearFloor()])
def test_in_painting_keeps_the_known_tokens(schedule):
    base = random_amused()
    known = torch.randint(0, CODES, (1, 16), generator=torch.Generator().manual_seed(1))
    initial = known.clone()
    initial[0, [1, 2, 5, 6, 9]] = CODES
    sampler = Sampler(base, sampling(8, schedule=schedule), VANILLA)
    tokens = sampler.tokens(["a b"], sampler.noise(0, torch.arange(1)), initial=initial)
    kept = initial[0] < CODES
    assert torch.equal(tokens[0, kept], known[0, kept])
    assert int(tokens.max()) < CODES
    images = base.decode(known)
    assert base.tokenize(images).shape == (1, 16)


def test_the_fingerprint_covers_all_that_changes_results():
    known = random_amused().fingerprint()
    assert known == random_amused().fingerprint()
    changes = [
        {"seed": 1},
        {"negative_prompt": "ugly"},
        {"crop": [0, 1]},
        {"score": 5.0},
        {"height": 32},
        {"dtype": "float32"},
        {"linear": "int8_weights"},
    ]
    prints = [random_amused(**change).fingerprint() for change in changes]
    assert len({known, *prints}) == len(changes) + 1
    assert random_amused(linear="int8_weights").plain_fingerprint() == known


def test_prompts_that_are_too_long_are_said_and_labels_refused():
    base = random_amused()
    assert base.review(["a b"]) == ""
    assert base.review(["a b c d e f g h i", "a"]).startswith("1 of 2 prompts are cut: the text encoder reads 7 tokens")
    with pytest.raises(UserError, match=r"labels=\[1, 2\]: this base draws what prompts say"):
        base.review(torch.tensor([1, 2]))


def refused(build) -> str:
    with pytest.raises((UserError, FileNotFoundError)) as error:
        build()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_parts_that_do_not_fit_together_are_refused_in_one_line():
    def made(**changes):
        return refused(lambda: random_amused(**changes))

    assert "base.height=18, base.width=16 must be multiples of 4" in made(height=18)
    assert "must be multiples of 8" in made(downsample=True, width=36)
    assert "base.transformer.codebook_size=24 must be base.tokenizer.num_codes=32" in made(tokenizer=tokenizer(4, 32))
    wide = replace(sizes(False), encoder_hidden_size=32)
    assert "base.transformer.encoder_hidden_size=32 must be base.text.hidden_size=24" in made(transformer=wide)
    pooled = replace(sizes(False), cond_embed_dim=24)
    assert "base.transformer.cond_embed_dim=24 must be base.text.projection_dim=32" in made(transformer=pooled)
    assert "base.crop=[1] must be two numbers" in made(crop=[1])
    for change, words in (
        ({"num_attention_heads": 5}, "hidden_size=48 must be a multiple of base.transformer.num_attention_heads=5"),
        ({"block_num_heads": 3}, "block_out_channels=32 must be a multiple of base.transformer.block_num_heads=3"),
        ({"codebook_size": 32}, "codebook_size=32 must be below base.transformer.vocab_size=32"),
    ):
        assert words in refused(lambda change=change: replace(sizes(False), **change))
    base = random_amused()
    images = torch.zeros(1, 3, 16, 20, dtype=torch.uint8)
    assert "image of 20x16 pixels: this base draws 16x16" in refused(lambda: base.tokenize(images))


def test_files_of_another_model_are_refused_in_one_line(tmp_path):
    folder, _, _, _ = save_random(tmp_path / "a")

    def loaded(config=sizes(False), **changes):  # noqa: B008
        given = {"height": 16, "width": 16, **changes}
        return refused(lambda: load_published(folder, config, TINY, tokenizer(), **given))

    assert "base.weights=" in loaded(weights=tmp_path / "none")
    assert "base.text_encoder=" in loaded(text_encoder=tmp_path / "none")
    assert "base.text_tokenizer=" in loaded(text_tokenizer=tmp_path / "none")
    assert "base.tokenizer_weights=None: no such file" in loaded(tokenizer_weights=None)
    assert "base.transformer.num_hidden_layers=3, but" in loaded(replace(sizes(False), num_hidden_layers=3))
    assert "base.transformer.downsample=True, but" in loaded(replace(sizes(False), downsample=True))
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "use_bias": True}))
    assert "use_bias=True is not supported, only False" in loaded()
    path.write_text(json.dumps({**config, "_class_name": "Transformer2DModel"}))
    assert "is of Transformer2DModel" in loaded()
    path.write_text("no json")
    assert "is not a JSON object" in loaded()
    path.write_text(json.dumps(config))
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    save_file({name: x for name, x in state.items() if name != "embed.conv.weight"}, weights)
    assert "lacks embed.conv.weight" in loaded()
    weights.write_bytes(b"cut")
    assert "is not a complete safetensors file" in loaded()


def test_random_global_norms_are_not_the_identity():
    net = random_net(sizes(False))
    assert float(net.down_block.res_blocks[0].channelwise_norm.gamma.abs().max()) > 0
    assert isinstance(random_amused(), Amused)
