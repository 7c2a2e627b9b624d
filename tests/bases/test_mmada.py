"""MMaDA behind the base contract: its ids, padding left out or attended, published files, refusals."""

from types import SimpleNamespace

import pytest
import torch
from mmada_parts import TASK_MARKERS, small_magvit, task_base
from tiny_parts import composed, moment

from migm.bases import decoding
from migm.bases.base import image_rows
from migm.bases.footprint import footprint, held
from migm.bases.inputs import review
from migm.bases.magvit import Levels, MagvitV2
from migm.config.building import build, load
from migm.config.roots import PlanConfig
from migm.sampling.draw import ExponentialRace
from migm.sampling.guidance import Constant
from migm.sampling.loop import Sampling
from migm.sampling.sampler import Sampler
from migm.sampling.schedule import CosineFloor
from migm.sampling.select import Confidence

PROMPTS = ["a cat", "two dark blue boats on the river", "no", ""]
M = SimpleNamespace(**TASK_MARKERS)


@pytest.fixture(scope="module")
def base():
    return task_base()


@pytest.fixture(scope="module")
def attending():
    return task_base(attend_padding=True)


def drawn(base, prompts, images, initial=None):
    draw, select = ExponentialRace(dtype="float64"), Confidence(1.0, "compounding")
    sampling = Sampling(6, 2, CosineFloor(at_least_one=True), draw, select, Constant(3.5, "logits"))
    sampler = Sampler(base, sampling)
    return sampler.tokens(prompts, sampler.noise(0, torch.tensor(images)), initial=initial)


def ids_of(base, tokens, branch):
    x, _ = base.prepare(tokens, branch, moment(torch.ones(len(tokens))))
    return (x[:, :, None] == base.transformer.wte.weight).all(-1).int().argmax(-1)


def test_a_sequence_is_task_bos_text_eos_and_the_image_between_two_markers(base, attending):
    tokens = torch.arange(16)[None].clone()
    tokens[0, 5] = 32
    codes = [40 + i for i in range(16)]
    codes[5] = M.mask
    text = base.template("a cat")
    assert (text[:2], text[-1], len(text)) == ([M.t2i, M.bos], M.eos, 5)
    for each, before in ((base, []), (attending, [M.pad] * 8)):
        branch = each.encode(["a cat"], guided=False)[0]
        assert ids_of(each, tokens, branch)[0].tolist() == [*before, *text, M.soi, *codes, M.eoi]
        assert branch.mask is None


def test_codes_are_rows_within_the_tables_and_the_head_gives_them_alone(base):
    features = torch.randn(2, 3, 48, dtype=torch.float64)
    logits = base.head(features)
    torch.testing.assert_close(logits, features @ base.transformer.ff_out.weight[40:72].T)
    branch, positions = base.encode(PROMPTS[:2], guided=False)[0], torch.tensor([[0, 5], [3, 9]])
    control = base.control(torch.tensor([[0, 31], [7, 7]]), positions, branch)
    new = control.embeddings[:, control.prompt :]
    assert torch.equal(new, base.transformer.wte.weight[torch.tensor([[40, 71], [47, 47]])])
    assert torch.equal(control.rows[:, control.prompt :], branch.rows.gather(1, positions))


@pytest.mark.parametrize("attend", [False, True])
def test_a_predictor_reads_the_words_of_the_conditional_half_alone(base, attending, attend):
    each = attending if attend else task_base(one_pass=True)
    (both,) = each.encode(PROMPTS, guided=True)
    control = each.control(torch.zeros(4, 2, dtype=torch.long), torch.arange(2).expand(4, -1), both)
    read = control.mask[:, : control.prompt]
    for row, prompt, ids in zip(read, PROMPTS, both.condition, strict=False):
        words = [] if not prompt else base.template(prompt)
        assert ids[row].tolist() == words  # no prompt is what the unconditional half has, too
    assert not read[4:].any()
    assert control.mask[:, control.prompt :].all()


def test_halves_are_equally_long_and_one_pass_without_a_mask_if_padding_is_attended(attending):
    (both,) = attending.encode(PROMPTS, guided=True)
    assert (both.copies, both.mask) == (2, None)
    assert both.ids.shape == (8, 13 + 18)
    assert attending.spec.num_tokens == 16


def test_padding_that_is_left_out_changes_nothing_and_attended_padding_does(base, attending):
    """Padded on the left and masked, as the present original code runs."""
    tokens = torch.arange(16)[None] % 32
    branch, padded = base.encode(["a cat"], guided=False)[0], attending.encode(["a cat"], guided=False)[0]
    ids = padded.ids.scatter(1, padded.rows, base.layout.image_ids(tokens, 32))
    masked = base.transformer(ids, ids != M.pad)
    ours = image_rows(base.features(tokens, branch, moment(torch.ones(1))), branch)
    torch.testing.assert_close(ours, image_rows(masked, padded), rtol=1e-6, atol=1e-6)  # rotations are float32
    attended = image_rows(attending.features(tokens, padded, moment(torch.ones(1))), padded)
    assert not torch.allclose(attended, ours, atol=1e-2)


@pytest.mark.parametrize("attend", [False, True])
def test_prompts_of_different_length_draw_what_they_draw_alone(base, attending, attend):
    each = attending if attend else base
    together = drawn(each, PROMPTS, [0, 1, 2, 3])
    for i, prompt in enumerate(PROMPTS):
        assert torch.equal(together[i : i + 1], drawn(each, [prompt], [i]))
    assert len(together.unique(dim=0)) == len(PROMPTS)


def test_a_branch_comes_back_from_its_conditions(base, attending):
    """Trajectories keep conditions alone, of both halves mixed."""
    tokens, now = torch.arange(16).expand(5, -1), moment(torch.ones(5))
    for each in (base, attending):
        halves = each.encode(PROMPTS, guided=True)
        rows = [row for half in halves for row in half.condition][:5]
        width = max(map(len, rows))
        again = each.branch(torch.stack([torch.nn.functional.pad(r, (0, width - len(r)), value=-1) for r in rows]))
        features = image_rows(each.features(tokens, again, now), again)
        one = halves[0].images(torch.arange(4)) if halves[0].copies == 2 else halves[0]
        right = image_rows(each.features(tokens[:4], one, now.images(slice(4))), one)[:4]
        torch.testing.assert_close(features[:4], right)
        assert again.prompt.any(1).tolist() == [True] * 3 + [False] * 2


def test_a_long_prompt_is_cut_counted_and_said(base, capsys):
    long = " ".join(["cat"] * 15)
    assert base.template(long) == [*base.template(" ".join(["cat"] * 10))[:-1], M.eos]
    assert base.review(["a cat", "cat " * 10]) == ""
    said = "reads 10 ids of a text (base.max_text_len=12) and leaves out"
    assert base.review([long]) == f"this base {said} the last 5 of the prompt"
    assert base.review(["a cat", long, "cat " * 12]) == f"this base {said} up to 5 more at the end of 2 of 3 prompts"
    review(base, [long], "evalset.inputs")
    assert "evalset.inputs: this base reads 10 ids" in " ".join(capsys.readouterr().out.split())
    assert len(drawn(base, [long], [0]))


def test_in_painting_keeps_what_is_given(base):
    images = base.decode(torch.arange(16)[None] % 32)
    assert images.shape == (1, 3, 16, 16)
    initial = base.tokenize(images).clone()
    initial[:, 4:12] = 32
    tokens = drawn(base, ["a cat"], [0], initial)
    assert torch.equal(tokens[:, :4], initial[:, :4])
    assert torch.equal(tokens[:, 12:], initial[:, 12:])
    assert int(tokens.max()) < 32


def test_tokens_of_an_image_are_the_signs_of_its_latents():
    net = small_magvit().eval()
    tokens = torch.arange(32).view(2, 16)
    signs = net.entries(tokens)
    assert torch.equal(net.ids(signs.unflatten(2, (4, 4))), tokens)
    assert torch.equal(net.ids(torch.zeros(1, 5, 2, 2)), torch.zeros(1, 4, dtype=torch.long))
    assert net.entries(torch.tensor([[16]]))[0, :, 0].tolist() == [
        1,
        -1,
        -1,
        -1,
        -1,
    ]  # the first channel is the largest
    assert net.to_images(tokens, (4, 4)).shape == (2, 3, 16, 16)
    assert net.to_images(tokens, (2, 8)).shape == (2, 3, 8, 32)


def test_the_fine_levels_may_be_bfloat16_and_change_images_little():
    torch.manual_seed(0)
    level = Levels(32, [1, 1, 2], [1, 1, 1])
    net, tokens = MagvitV2(level, level, 5, 8).eval().requires_grad_(False), torch.randint(32, (2, 64))
    values = net.pixel_values(tokens, (8, 8))
    net.decoder.conv_out.weight.mul_(0.5 / values.std())  # as much contrast as photos have
    right = net.to_images(tokens, (8, 8))
    assert right.float().std() > 30
    size = decoding.image_bytes(net, (8, 8))
    decoding.narrow(net)
    assert decoding.image_bytes(net, (8, 8)) == size / 2
    assert {p.dtype for p in net.decoder.up_blocks[1].resnets[0].conv1.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in (*net.decoder.up_blocks[2].parameters(), *net.decoder.conv_out.parameters())} == {
        torch.float32
    }
    differ = (decoding.decode(net, tokens, (8, 8)).int() - right.int()).abs().float()
    assert 0 < differ.mean() < 1.5


def test_fingerprints_tell_what_changes_results_apart():
    changes = [{}, {}, {"seed": 1}, {"dtype": "float32"}, {"height": 8}, {"attend_padding": True}, {"max_text_len": 11}]
    changes += [{"code_offset": 41}, {"markers": {**TASK_MARKERS, "soi": 37}}]
    prints = [task_base(**each).fingerprint() for each in changes]
    assert prints[0] == prints[1]
    assert len(set(prints[1:])) == len(changes) - 1
    assert task_base(one_pass=True).fingerprint() == prints[0]  # how it runs, not what it draws


def node_of(*overrides):
    return load(composed("plan", "device=cpu", "base=mmada", "base.dtype=bfloat16", *overrides), PlanConfig).base


def test_the_published_sizes_are_said_before_anything_is_loaded():
    node = node_of()
    said = footprint(node)
    block = 4 * 4096**2 + 3 * 4096 * 12288
    assert said.transformer == 2 * 8_082_690_048 == 2 * (32 * (block + 2 * 4096) + 2 * 134656 * 4096 + 4096)
    assert said.tokenizer == 4 * (55_439_171 + 39_947_833)
    assert "16.17 GB (bfloat16)" in str(said)
    lower = footprint({**node, "linear": "fp8_rowwise"})
    assert lower.transformer < 0.6 * said.transformer


def test_what_is_said_of_a_small_base_is_what_it_holds():
    sizes = ["d_model=32", "n_heads=2", "n_layers=2", "mlp_hidden_size=48"]
    small = [*(f"base.transformer.{size}" for size in sizes), "base.height=32", "base.width=48"]
    few = [f"base.tokenizer.{part}.channels=32" for part in ("encoder", "decoder")]
    node = node_of(*small, *few, "base.random_weights=true")
    said, made = footprint(node), build(node)
    assert (said.transformer, said.tokenizer) == (held(made.transformer), held(made.tokenizer))
    assert said.features == 2 * made.spec.num_tokens * 32 * 2
    assert said.decoding == decoding.image_bytes(made.tokenizer, made.spec.grid)
    assert made.spec.grid == (2, 3)
