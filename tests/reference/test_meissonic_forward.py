"""Meissonic's transformer against the recorded one: every recorded value inside, features, logits."""

import json
from types import SimpleNamespace

import pytest
import torch
from recorded_meissonic import recorded_net
from torch.nn.functional import linear

from migm.bases.meissonic_blocks import modulated, per_head, rotate


def close(ours, recorded, name=""):
    """At most 2e-5 of the recorded tensor's largest value apart."""
    assert ours.shape == recorded.shape, name
    assert float((ours - recorded).abs().max()) <= 2e-5 * float(recorded.abs().max()), name


@pytest.fixture(scope="module", params=["meissonic", "meissonic_monetico"])
def case(request, read_vector):
    """A recorded pass: the network, its inputs, and what enters the first block."""
    tensors, meta = read_vector(f"{request.param}_forward")
    net, grid = recorded_net(read_vector, meta["state_file"]), tuple(json.loads(meta["grid"]))
    text, vector = net.condition(tensors["in.text"], tensors["in.pooled"], tensors["in.micro_conds"])
    tokens = tensors["in.tokens"].flatten(1)
    assert net.mask_id == int(meta["mask_id"])

    def prepare(t):
        timed = net.timed(vector, t.expand(len(vector)))
        return (timed, *net.prepare(tokens, text, timed, grid))

    return SimpleNamespace(
        net=net, tensors=tensors, grid=grid, text=text, vector=vector, tokens=tokens, prepare=prepare
    )


def by_token(case, cells):
    """Values (b, r, s, c) of cells as (b, l, c), row-major, as they are recorded."""
    b, _, places, c = cells.shape
    cell, (height, width) = case.net.config.cell, case.grid
    assert places == cell * cell
    split = cells.view(b, height // cell, width // cell, cell, cell, c)
    return split.transpose(2, 3).reshape(b, height * width, c)


def test_what_conditions_and_what_enters_the_blocks_are_the_recorded_values(case):
    net, tensors = case.net, case.tensors
    timed, x, ctx = case.prepare(tensors["in.timestep"])
    close(case.text, tensors["act.text_in"])
    close(timed, tensors["act.temb"])
    embedded = net.embed(net.cells(case.tokens, case.grid))
    close(by_token(case, embedded), tensors["act.embed"])
    close(net.down(embedded), tensors["act.down"])
    close(x, torch.cat([tensors["act.text_in"], tensors["act.rows_in"]], 1))
    assert torch.equal(ctx.cos, tensors["rope.cos"])
    assert torch.equal(ctx.sin, tensors["rope.sin"])
    seen = []
    net.cond_embed.register_forward_hook(lambda _, __, out: seen.append(out))
    net.condition(tensors["in.text"], tensors["in.pooled"], tensors["in.micro_conds"])
    close(seen[0], tensors["act.cond"])


def test_features_and_logits_at_every_recorded_time_are_the_recorded_ones(case):
    net, tensors, q = case.net, case.tensors, case.text.shape[1]
    times = {
        "logits": tensors["in.timestep"],
        "logits_t0": torch.zeros(1),
        "logits_float_t": tensors["in.float_timestep"],
    }
    for name, t in times.items():
        _, x, ctx = case.prepare(t)
        for block in net.blocks:
            x = block(x, ctx)
        features = net.finalize(x)[:, q:]
        close(by_token(case, net.head(features)), tensors[f"out.{name}"], name)
        if name == "logits":
            up = net.up(features)
            close(net.project_from_hidden_norm(x[:, q:]), tensors["act.inner_norm"])
            close(features, tensors["act.inner"])
            close(by_token(case, up), tensors["act.up"])
            close(by_token(case, linear(up, net.mlm_layer.conv1.weight.flatten(1))), tensors["act.mlm_conv1"])
            close(by_token(case, net.mlm_layer.inner(up)), tensors["act.feat"])
            close(tensors["act.feat"], tensors["out.feat"])


def test_every_block_gives_the_recorded_rows_fused_and_by_its_parts(case):
    net, tensors, q = case.net, case.tensors, case.text.shape[1]
    _, x, ctx = case.prepare(tensors["in.timestep"])
    for i, block in enumerate(net.blocks):
        between = x + block.attn_delta(x, ctx, block.k(x, ctx), block.v(x, ctx))
        parts, x = between + block.mlp_delta(between, ctx), block(x, ctx)
        single = i - net.config.num_layers
        if single < 0:
            recorded = torch.cat([tensors[f"act.double.{i}.text"], tensors[f"act.double.{i}.image"]], 1)
        else:
            recorded = tensors[f"act.single.{single}"]
        close(x, recorded, f"block {i}")
        close(parts, recorded, f"block {i} by its parts")
    assert single == net.config.num_single_layers - 1
    close(net.finalize(x)[:, q:], tensors["act.inner"])


def test_the_parts_of_the_first_double_block_are_the_recorded_ones(case):
    net, tensors, q = case.net, case.tensors, case.text.shape[1]
    _, x, ctx = case.prepare(tensors["in.timestep"])
    block = net.transformer_blocks[0]
    text, image = block.streams
    queries, keys, values = [], [], []
    for stream, rows, norm, names in (
        (text, x[:, :q], "norm1_context", ("norm_added_q", "norm_added_k")),
        (image, x[:, q:], "norm1", ("norm_q", "norm_k")),
    ):
        a = stream.normed(rows, ctx.vector)
        close(a, tensors[f"act.double0.{norm}.0"], norm)
        _, _, *rest = stream.modulation(ctx.vector)
        for number, value in enumerate(rest, 1):
            close(value[:, 0], tensors[f"act.double0.{norm}.{number}"], f"{norm} {number}")
        queries.append(per_head(stream.q(a), stream.q_norm))
        keys.append(per_head(stream.k(a), stream.k_norm))
        values.append(stream.v(a))
        for name, value in zip(names, (queries[-1], keys[-1]), strict=True):
            close(block._heads(value), tensors[f"act.double0.{name}"], name)
    q_rotated, k_rotated = (rotate(block._heads(torch.cat(part, 1)), ctx) for part in (queries, keys))
    close(q_rotated, tensors["act.double0.q_rope"])
    close(k_rotated, tensors["act.double0.k_rope"])
    close(block.k(x, ctx), tensors["act.double0.k_rope"])
    out = torch.nn.functional.scaled_dot_product_attention(q_rotated, k_rotated, block._heads(torch.cat(values, 1)))
    out = out.transpose(1, 2).flatten(2)
    close(image.out(out[:, q:]), tensors["act.double0.attn.0"])
    close(text.out(out[:, :q]), tensors["act.double0.attn.1"])
    x = x + block.attn_delta(x, ctx, block.k(x, ctx), block.v(x, ctx))
    for stream, rows, name in ((text, x[:, :q], "ff_context"), (image, x[:, q:], "ff")):
        shift, scale, _ = stream.modulation(ctx.vector, 3, 6)
        close(stream.feed(modulated(rows, shift, scale)), tensors[f"act.double0.{name}"], name)


def test_the_parts_of_the_first_single_block_are_the_recorded_ones(case):
    net, tensors = case.net, case.tensors
    timed, _, ctx = case.prepare(tensors["in.timestep"])
    block, last = net.single_transformer_blocks[0], net.config.num_layers - 1
    x = torch.cat([tensors[f"act.double.{last}.text"], tensors[f"act.double.{last}.image"]], 1)
    shift, scale, gate = block.norm(timed)
    a = modulated(x, shift, scale)
    close(a, tensors["act.single0.norm.0"])
    close(gate[:, 0], tensors["act.single0.norm.1"])
    q, k = per_head(block.attn.to_q(a), block.attn.norm_q), per_head(block.attn.to_k(a), block.attn.norm_k)
    close(block._heads(q), tensors["act.single0.norm_q"])
    close(block._heads(k), tensors["act.single0.norm_k"])
    close(rotate(block._heads(q), ctx), tensors["act.single0.q_rope"])
    close(block.k(x, ctx), tensors["act.single0.k_rope"])
    attended = torch.nn.functional.scaled_dot_product_attention(
        rotate(block._heads(q), ctx), block.k(x, ctx), block.v(x, ctx)
    )
    close(attended.transpose(1, 2).flatten(2), tensors["act.single0.attn"])
    close(block.proj_mlp(a), tensors["act.single0.proj_mlp"])
    out = block.attn_delta(x, ctx, block.k(x, ctx), block.v(x, ctx))
    close(out, gate * tensors["act.single0.proj_out"])
    assert not block.mlp_delta(x, ctx).any()
