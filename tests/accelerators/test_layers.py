"""The layers of both bases and the ways through them (docs/originals/methods.md, Laws 1 to 4)."""

import pytest
import torch
from families import PROMPTS
from method_checks import ROUNDING, close, one_layer, same_rows, take_rows
from tiny_parts import moment

from migm.accelerators.extrapolation import Taylor
from migm.accelerators.predictors.forecast import histories
from migm.accelerators.predictors.reuse import Reuse
from migm.accelerators.runners import Deltas, KeyValues, VVerify, put
from migm.accelerators.runs import full_step
from migm.bases.base import take
from migm.bases.layers import run_blocks
from migm.bases.segments import image_span, other_rows

HALF = moment(torch.full((3,), 0.5))


def composed(blocks, x, ctx):
    for block in blocks:
        x = x + block.attn_delta(x, ctx, block.k(x, ctx), block.v(x, ctx))
        x = x + block.mlp_delta(x, ctx)
    return x


@pytest.fixture(scope="module")
def images(family):
    """Tokens (3, l) of which some are masked, and the same with other tokens at the positions 2, 7 and 11."""
    v = family.base.spec.vocab_size
    tokens = torch.randint(0, v + 1, (3, family.base.spec.num_tokens), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[:, [2, 7, 11]] = (tokens[:, [2, 7, 11]] + 5) % v
    return tokens, changed


@pytest.fixture(scope="module")
def branch(family):
    """The first branch of three images: with padding, or with both guidance halves."""
    return family.base.encode(family.some([0, 1, 2]), guided=True)[0]


def some_rows(branch, count, seed=0):
    """Rows (copies * b, count) in any order, none of them padding."""
    length = branch.mask.sum(1).min() if branch.mask is not None else branch.rows.max() + 1
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(int(length), generator=generator)[:count] for _ in branch.condition])


def partial(base, store, tokens, branch, rows, keep=None):
    x, ctx = base.prepare(tokens, branch, HALF, rows)
    return base.finalize(store.run_rows(base.blocks, x, ctx, rows, keep), ctx)


@pytest.fixture(scope="module")
def filled(family, images, branch):
    """Makes a runner of a kind, run on the first tokens, and gives the features as well."""

    def make(kind, base=family.base):
        store = kind()
        return store, base.features(images[0], branch, HALF, runner=store.run)

    return make


RUNNERS = {
    "composition": lambda: composed,
    "key values": lambda: KeyValues().run,
    "deltas": lambda: Deltas(histories(Taylor(1))).run(0),
    "v verify": lambda: VVerify().run,
}


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_fused_layers_equal_every_full_runner(family, images, branch, runner):
    base = family.base
    fused = base.features(images[0], branch, HALF)
    x, ctx = base.prepare(images[0], branch, HALF)
    same_rows(base.finalize(RUNNERS[runner]()(base.blocks, x, ctx), ctx), fused, branch)
    same_rows(base.features(images[0], branch, HALF, runner=RUNNERS[runner]()), fused, branch)
    assert torch.equal(base.finalize(run_blocks(base.blocks, x, ctx), ctx), fused)


def test_prepared_rows_are_those_of_the_sequence(family, images, branch):
    rows = some_rows(branch, 7)
    x, ctx = family.base.prepare(images[0], branch, HALF)
    some, here = family.base.prepare(images[0], branch, HALF, rows)
    close(some, take_rows(x, rows))
    for block in family.base.blocks:
        for part in (block.k, block.v):
            wanted = take_rows(part(x, ctx).transpose(1, 2).flatten(2), rows)
            for context in (here, ctx.at(rows)):
                close(part(some, context).transpose(1, 2).flatten(2), wanted)
        k, v = block.k(x, ctx), block.v(x, ctx)
        close(block.attn_delta(some, here, k, v), take_rows(block.attn_delta(x, ctx, k, v), rows))
        close(block.mlp_delta(some, here), take_rows(block.mlp_delta(x, ctx), rows))
    one_by_one = [family.base.finalize(row, ctx) for row in x.split(1, 1)]
    same_rows(family.base.finalize(x, ctx), torch.cat(one_by_one, 1), branch)


def test_the_head_knows_the_rows_it_is_asked_about(family, images, branch):
    features = family.base.features(images[0], branch, HALF)
    rows, every = some_rows(branch, 5), family.base.head(features)
    close(family.base.head(take_rows(features, rows), rows=rows), take_rows(every, rows))
    at = torch.tensor([[3, 0], [7, 9], [15, 2]]).repeat(branch.copies, 1)
    places = branch.rows.gather(1, at)
    close(family.base.head(take_rows(features, places), at), take_rows(every, places))


@pytest.mark.parametrize("count", [1, 5, None])
def test_rows_of_unchanged_tokens_come_out_as_in_the_full_pass_in_any_order(filled, family, images, branch, count):
    store, features = filled(KeyValues)
    rows = some_rows(branch, count, seed=count or 0)
    close(partial(family.base, store, images[0], branch, rows), take_rows(features, rows))


def test_all_rows_of_changed_tokens_come_out_as_in_a_full_pass(filled, family, images, branch):
    store, before = filled(KeyValues)
    wanted = family.base.features(images[1], branch, HALF)
    rows = torch.arange(wanted.shape[1]).flip(0).expand(len(wanted), -1)
    same_rows(partial(family.base, store, images[1], branch, rows).flip(1), wanted, branch)
    assert float((wanted - before).abs().max()) > 0.01


def test_changed_rows_of_a_single_layer_are_exact_and_stay_stored(filled, family, images, branch):
    base = one_layer(family).base
    store, _ = filled(KeyValues, base)
    wanted = base.features(images[1], branch, HALF)
    rows = branch.rows[:, [7, 0, 11, 2]]
    close(partial(base, store, images[1], branch, rows), take_rows(wanted, rows))
    close(partial(base, store, images[1], branch, branch.rows[:, [5, 1]]), take_rows(wanted, branch.rows[:, [5, 1]]))


def test_of_rows_that_are_not_to_be_kept_nothing_is_stored(filled, family, images, branch):
    (store, _), (other, _) = filled(KeyValues), filled(KeyValues)
    rows = branch.rows[:, [2, 7]]
    keep = torch.zeros_like(rows, dtype=torch.bool)
    keep[0], keep[1, 0] = True, True
    partial(family.base, store, images[1], branch, rows, keep)
    written = {(b, int(rows[b, j])) for b, j in keep.nonzero().tolist()}
    for pair, before in zip(store.layers, other.layers, strict=True):
        for stored, old in zip(pair, before, strict=True):
            assert {(b, r) for b, r in (stored != old).any(-1).any(1).nonzero().tolist()} == written


@pytest.mark.parametrize("number", [0, 3])
def test_taken_rows_and_their_gradients_are_those_of_an_index(number):
    x = torch.randn(2, 5, 4, 3, requires_grad=True)
    rows = torch.stack([torch.randperm(5), torch.randperm(5)])[:, :number]
    ours, plain = take(x, rows), x[torch.arange(2)[:, None], rows]
    assert torch.equal(ours, plain)
    assert torch.equal(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (ours, plain)))


def test_put_and_take_are_each_others_inverse_and_leave_the_rest(family):
    stored, rows = torch.zeros(2, 5, 3), torch.tensor([[4, 1], [0, 2]])
    put(stored, rows, torch.arange(12.0).view(2, 2, 3) + 1)
    assert torch.equal(take(stored, rows), torch.arange(12.0).view(2, 2, 3) + 1)
    assert int((stored != 0).sum()) == 12
    put(stored, rows, torch.full((2, 2, 3), 99.0), torch.tensor([[True, False], [False, False]]))
    assert (stored == 99).any(-1).nonzero().tolist() == [[0, 4]]


# --- dLLM-Cache's runner ---


def verify(base, store, tokens, branch, rows, num_changed):
    x, ctx = base.prepare(tokens, branch, HALF)
    return base.finalize(store.run_rows(base.blocks, x, ctx, rows, image_span(branch), num_changed), ctx)


def test_computing_all_of_both_segments_is_a_full_pass(filled, family, images, branch):
    wanted = family.base.features(images[1], branch, HALF)
    span = image_span(branch)
    prompt = other_rows(span, wanted.shape[1])
    assert torch.equal(torch.cat([span, prompt], 1).sort(1).values[0], torch.arange(wanted.shape[1]))
    for rows, count in ((prompt, span.shape[1]), (torch.cat([span, prompt], 1), 0)):
        store, _ = filled(VVerify)
        same_rows(verify(family.base, store, images[1], branch, rows, count), wanted, branch)


@pytest.mark.parametrize("count", [0, 1, 6])
def test_unchanged_tokens_keep_their_features_however_few_rows_are_computed(filled, family, images, branch, count):
    store, features = filled(VVerify)
    for rows in (None, other_rows(image_span(branch), features.shape[1])):
        same_rows(verify(family.base, store, images[0], branch, rows, count), features, branch)


def moved(new, old):
    """The rows (sequence, row) that differ by more than rounding."""
    return [tuple(at) for at in ((new - old).flatten(2).abs().amax(-1) > ROUNDING).nonzero().tolist()]


def test_values_are_stored_of_all_image_rows_and_the_rest_of_the_chosen_alone(filled, family, images, branch):
    base = one_layer(family).base
    (store, _), (before, _) = filled(VVerify, base), filled(VVerify, base)
    wanted, count = base.features(images[1], branch, HALF), 3
    out = verify(base, store, images[1], branch, None, count)
    changed = branch.rows[:, [2, 7, 11]]
    close(take_rows(out, changed), take_rows(wanted, changed))  # the rows of new tokens are the least similar
    (k, v, attn, mlp, last), (old_k, old_v, old_attn, old_mlp, _) = store.layers[0], before.layers[0]
    rows = [(b, int(r)) for b in range(len(changed)) for r in changed[b].sort().values]
    for new, old in ((k, old_k), (v, old_v), (attn, old_attn), (mlp, old_mlp)):
        assert moved(new, old) == rows
    assert [(b, r) for b, r in last.nonzero().tolist()] == rows
    out = verify(base, store, images[0], branch, None, 1)  # one row is computed, the values of all three are stored
    same_rows(store.layers[0][1].flatten(2), before.layers[0][1].flatten(2), branch)
    assert len(moved(store.layers[0][0], old_k)) == 2 * len(changed)


def test_of_rows_that_did_not_change_those_left_alone_for_longest_are_computed(filled, family, images, branch):
    store, _ = filled(VVerify)
    span = image_span(branch)
    for first in range(0, 15, 5):
        verify(family.base, store, images[0], branch, None, 5)
        for *_, last in store.layers:
            ages = take(last[..., None], span)[..., 0]
            assert (ages[:, first : first + 5] == first // 5 + 1).all()
            assert (ages[:, first + 5 :] == 0).all()


# --- TaylorSeer's and TeaCache's runners ---


def test_order_0_of_every_module_repeats_the_full_pass_and_adds_up_to_it(family, images, branch):
    base, deltas = family.base, Deltas(histories(Taylor(0)))
    features = base.features(images[0], branch, HALF, runner=deltas.run(0))
    assert len(deltas.layers) == len(base.blocks)
    x, ctx = base.prepare(images[0], branch, HALF)
    same_rows(base.finalize(deltas.predict(3, x), ctx), features, branch)
    total = sum(history.predict(1) for layer in deltas.layers for history in layer)
    x, _ = base.prepare(images[1], branch, HALF)
    close(deltas.predict(1, x), x + total)


def test_a_residual_is_what_the_blocks_added_and_lets_new_tokens_through(family, images, branch):
    base = family.base
    forecast = Reuse("residual").start(base, branch)
    full = full_step(base, branch, forecast, 0, images[0], HALF)
    x, ctx = base.prepare(images[0], branch, HALF)
    now, _ = base.prepare(images[1], branch, HALF)
    predicted = forecast.predict(1, images[1], torch.zeros(3, 0, dtype=torch.long), HALF)
    same_rows(predicted, base.finalize(now + composed(base.blocks, x, ctx) - x, ctx), branch)
    assert moved(predicted, full) == [(b, int(r)) for b in range(len(full)) for r in branch.rows[b, [2, 7, 11]]]


def test_the_image_span_takes_in_what_stands_between_its_tokens(dimoo):
    for some in dimoo.base.encode(PROMPTS, guided=True):
        span, (height, width) = image_span(some), dimoo.base.spec.grid
        assert span.shape[1] == height * (width + 1) - 1  # the last newline stands behind it
        assert torch.equal(span[:, 0], some.rows[:, 0])
        assert torch.equal(span[:, -1], some.rows[:, -1])
