"""Lumina-DiMOO behind the base contract: prompts of any length in one batch, halves in one or two passes."""

from types import SimpleNamespace

import pytest
import torch
from tiny_parts import MARKERS, moment, naming, text_base

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.predictors.shortcut import Shortcut
from migm.accelerators.refresh import Uniform
from migm.bases.base import image_rows
from migm.bases.layers import run_blocks
from migm.runtime.errors import UserError
from migm.sampling.draw import GumbelMax
from migm.sampling.guidance import Constant
from migm.sampling.loop import Sampling
from migm.sampling.sampler import VANILLA, Sampler
from migm.sampling.schedule import CosineFloor
from migm.sampling.select import Confidence
from migm.shortcuts.dimoo import DiMOOShortcut

PROMPTS = ["a cat", "two dark blue boats on the river", "no", "a red truck, seen from behind"]


@pytest.fixture(scope="module")
def base():
    return text_base()


def sampling(num_steps=6, on="logits"):
    draw, select = GumbelMax(plain_confidence=True), Confidence(1.0, "constant")
    return Sampling(num_steps, 2, CosineFloor(), draw, select, Constant(4.0, on))


def drawn(base, prompts, images, accelerator=VANILLA, **changes):
    records = []
    sampler, watch = Sampler(base, sampling(**changes), accelerator), [SimpleNamespace(on_step=records.append)]
    return sampler.tokens(prompts, sampler.noise(0, torch.tensor(images)), watch), records


def shortcut_run(prompt=True):
    torch.manual_seed(1)
    net = DiMOOShortcut(48, num_heads=4, mlp_channels=64, rope_theta=10000.0, prompt=prompt).double()
    return Accelerator(Uniform(2), Shortcut(module=net), "shortcut")


def test_spec_states_the_models_sizes(base):
    spec = base.spec
    assert (spec.num_tokens, spec.grid, spec.vocab_size, spec.channels, spec.num_layers) == (16, (4, 4), 24, 48, 2)


def test_a_sequence_is_prompt_markers_rows_and_newlines(base):
    branch = base.encode(["a cat"], guided=False)[0]
    tokens = torch.arange(16)[None]
    tokens[0, 5] = 24
    x, ctx = base.prepare(tokens, branch, moment(torch.ones(1)))
    ids = (x[0, :, None] == base.transformer.wte.weight).all(-1).int().argmax(-1).tolist()
    m = SimpleNamespace(**MARKERS)
    codes = [36 + i for i in range(16)]
    codes[5] = m.mask
    rows = [id for r in range(4) for id in (*codes[4 * r : 4 * r + 4], m.newline)]
    assert ids == [*base.template("a cat"), m.answer, m.image, *rows, m.end_image, m.end_answer]
    assert ctx.mask is None
    assert [ids[row] for row in branch.rows[0]] == codes


def test_the_unconditional_half_has_its_own_words_and_length(base):
    one, none = base.encode(["a red truck"], guided=True)
    assert none.condition.tolist() == [base.template.unconditional]
    assert one.condition.shape[1] == none.condition.shape[1] + 2
    assert (one.num_prompt, one.prompt) == (one.condition.shape[1], None)
    assert none.num_prompt == 0


def test_only_masks_that_say_something_reach_attention(base):
    alone, several = (base.encode(prompts, guided=True)[0] for prompts in (PROMPTS[:1], PROMPTS))
    tokens, positions = torch.zeros(4, 2, dtype=torch.long), torch.arange(2).expand(4, -1)
    one, some = (base.control(tokens[: len(b.rows)], positions[: len(b.rows)], b) for b in (alone, several))
    assert (alone.mask, one.mask, one.row_mask) == (None, None, None)
    assert not several.mask.all()
    assert some.mask[:, : some.prompt].tolist() == (several.condition >= 0).tolist()


@pytest.mark.parametrize("one_pass", [False, True])
def test_prompts_of_different_length_draw_what_they_draw_alone(one_pass):
    base = text_base(one_pass=one_pass)
    together, _ = drawn(base, PROMPTS, [0, 1, 2, 3])
    for i, prompt in enumerate(PROMPTS):
        alone, _ = drawn(base, [prompt], [i])
        assert torch.equal(together[i : i + 1], alone)
    assert len(together.unique(dim=0)) == len(PROMPTS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_one_pass_equals_two(dtype, accelerated, prompts):
    """Features to rounding, tokens exactly, and with a shortcut too."""
    results = []
    for one_pass in (False, True):
        accelerator = shortcut_run() if accelerated else VANILLA
        base = text_base(one_pass=one_pass, dtype=dtype)
        tokens, records = drawn(base, prompts, range(len(prompts)), accelerator)
        halves = [
            image_rows(f, branch).chunk(branch.copies)
            for record in records
            for branch, f in zip(record.branches, record.features, strict=True)
        ]
        results.append((tokens, torch.stack([h.double() for pair in halves for h in pair])))
    (first, apart), (second, padded) = results
    assert torch.equal(first, second)
    tolerance = 1e-10 if dtype == "float64" else 2e-5
    torch.testing.assert_close(apart, padded, rtol=tolerance, atol=tolerance)


def test_a_batch_with_a_shortcut_equals_one_by_one():
    base, accelerator = text_base(), shortcut_run()
    together, _ = drawn(base, PROMPTS, [0, 1, 2, 3], accelerator)
    for i, prompt in enumerate(PROMPTS):
        assert torch.equal(together[i : i + 1], drawn(base, [prompt], [i], accelerator)[0])
    assert not torch.equal(together, drawn(base, PROMPTS, [0, 1, 2, 3])[0])


def test_the_prompt_is_read_by_a_shortcut_unless_it_is_told_not_to():
    base = text_base()
    with_it, without = (drawn(base, PROMPTS, range(4), shortcut_run(prompt))[1][1].features for prompt in (True, False))
    assert not torch.allclose(with_it[0], without[0], atol=1e-3)
    torch.testing.assert_close(with_it[1], without[1])  # the unconditional half has no prompt


def test_steps_that_reveal_nothing_change_no_token_and_cost_no_error():
    base = text_base()
    counts = CosineFloor().counts(16, 14)
    assert 0 in counts
    tokens, records = drawn(base, PROMPTS, range(4), shortcut_run(), num_steps=14)
    assert int(tokens.max()) < 24
    for record, count in zip(records, counts, strict=True):
        assert record.new_positions.shape == (4, count)
        assert all(f.isfinite().all() for f in record.features)


def test_guidance_before_the_head_equals_guidance_behind_it():
    base = text_base()
    behind, before = (drawn(base, PROMPTS, range(4), on=on)[0] for on in ("logits", "features"))
    assert torch.equal(behind, before)


def test_the_fused_pass_equals_the_composition_of_the_blocks_parts(base):
    branch = base.encode(PROMPTS, guided=True)[0]
    tokens, now = torch.arange(16).expand(4, -1), moment(torch.ones(4))

    def composed(blocks, x, ctx):
        for block in blocks:
            x = x + block.attn_delta(x, ctx, block.k(x, ctx), block.v(x, ctx))
            x = x + block.mlp_delta(x, ctx)
        return x

    fused = base.features(tokens, branch, now)
    torch.testing.assert_close(base.features(tokens, branch, now, composed), fused, rtol=1e-12, atol=1e-12)
    assert torch.equal(base.features(tokens, branch, now, run_blocks), fused)


def test_a_branch_comes_back_from_its_conditions(base):
    """Trajectories keep conditions alone, of both halves mixed."""
    one, none = base.encode(PROMPTS, guided=True)
    width = one.condition.shape[1]
    padded = torch.nn.functional.pad(none.condition[:1], (0, width - none.condition.shape[1]), value=-1)
    tokens, now = torch.arange(16).expand(5, -1), moment(torch.ones(5))
    again = base.branch(torch.cat([one.condition, padded]), length=width + base.layout.num_rows + 3)
    features = image_rows(base.features(tokens, again, now), again)
    torch.testing.assert_close(features[:4], image_rows(base.features(tokens[:4], one, now.images(slice(4))), one))
    torch.testing.assert_close(
        features[4:], image_rows(base.features(tokens[:4], none, now.images(slice(4))), none)[:1]
    )
    assert again.prompt.any(1).tolist() == [True] * 4 + [False]


def test_images_are_decoded_from_codes_and_tokenized_back_in_shape(base):
    tokens = torch.arange(16)[None] % 24
    images = base.decode(tokens)
    assert images.shape == (1, 3, 16, 16)
    assert images.dtype == torch.uint8
    assert base.tokenize(images).shape == (1, 16)


def test_a_wide_image_has_its_own_grid():
    base = text_base(height=8, width=24)
    assert base.spec.grid == (2, 6)
    tokens, _ = drawn(base, ["a cat"], [0], num_steps=3)
    assert base.decode(tokens).shape == (1, 3, 8, 24)


def test_fingerprints_tell_weights_precision_and_template_apart():
    prints = [text_base(**changes).fingerprint() for changes in ({}, {}, {"seed": 1}, {"dtype": "float32"})]
    prints += [text_base(system="other").fingerprint(), text_base(height=8).fingerprint()]
    assert prints[0] == prints[1]
    assert len(set(prints[1:])) == 5
    assert text_base(one_pass=True).fingerprint() == prints[0]  # how it runs, not what it draws


def test_a_height_between_tokens_is_refused():
    with pytest.raises(UserError, match=naming("base.height=18", "multiples of 4")):
        text_base(height=18)


def test_labels_are_refused(base):
    with pytest.raises(UserError, match=naming("labels=[3]", "prompts")):
        base.encode(torch.tensor([3]), guided=False)
