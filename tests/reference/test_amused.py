"""aMUSEd as diffusers runs it: the forward pass with its inner values, and a whole guided run."""

import json
from types import SimpleNamespace

import pytest
import torch
from amused_parts import load_published, named, save_published, tokenizer
from scheduler_noise import RecordedScheduler
from tiny_parts import state_dict

from migm.accelerators.accelerator import Accelerator
from migm.accelerators.refresh import Always
from migm.bases.clip_text import CLIPTextConfig
from migm.bases.uvit import UVitConfig
from migm.sampling.draw import GumbelMax
from migm.sampling.guidance import Constant
from migm.sampling.loop import Sampling
from migm.sampling.sampler import Sampler
from migm.sampling.schedule import CosineFloor
from migm.sampling.select import Confidence


@pytest.fixture(scope="module")
def base(read_vector, tmp_path_factory):
    """The recorded base, through its published layout, at the size of the recorded run."""
    tensors, meta = read_vector("amused_state")
    run = read_vector("amused_sample_guided")[1]
    text, text_meta = read_vector(run["text_file"])
    config, text_config = json.loads(meta["config"]), json.loads(text_meta["config"])
    rows, height, width = json.loads(run["grid"])[0], int(run["height"]), int(run["width"])
    vq = tokenizer(height // rows, config["codebook_size"])
    folder = tmp_path_factory.mktemp("amused") / "published"
    save_published(folder, config, tensors, (text_config, state_dict(text)), vq)
    changes = {
        "height": height,
        "width": width,
        "crop": json.loads(run["crop"]),
        "score": float(run["aesthetic_score"]),
    }
    return load_published(folder, named(UVitConfig, config), named(CLIPTextConfig, text_config), vq, **changes)


def close(found, wanted, tolerance=2e-5):
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


def ours(tokens, meta, base):
    """Recorded tokens, with the mask as every base of migm has it."""
    return tokens.flatten(1).where(tokens.flatten(1) != int(meta["mask_id"]), base.spec.vocab_size)


def test_the_forward_pass_gives_every_recorded_value(read_vector, base):
    tensors, meta = read_vector("amused_forward")
    net, uvit, seen = base.transformer, base.uvit, {}

    def keep(name):
        def hook(_, __, out):
            seen[name] = out.flatten(2).transpose(1, 2) if out.ndim == 4 else out

        return hook

    parts = {"embed": net.embed, "down": net.down_block, "up": net.up_block}
    parts |= {"down_res0": net.down_block.res_blocks[0], "down_attention0": net.down_block.attention_blocks[0]}
    parts |= {"inner": net.project_from_hidden}
    hooks = [part.register_forward_hook(keep(name)) for name, part in parts.items()]
    contexts = [
        uvit.context(text[None], pooled[None], micro)
        for text, pooled, micro in zip(tensors["in.text"], tensors["in.pooled"], tensors["in.micro_conds"], strict=True)
    ]
    ctx = type(contexts[0])(*(torch.cat(parts) for parts in zip(*contexts, strict=True)))
    close(ctx.text, tensors["act.text_in"])
    close(ctx.cond, tensors["act.cond"])
    ids = ours(tensors["in.tokens"], meta, base)
    x = uvit.rows_in(base._ids(ids), ctx)
    close(x, tensors["act.rows_in"])
    for number, block in enumerate(base.blocks):
        k, v = block.k(x, ctx), block.v(x, ctx)
        alone = x + block.attn_delta(x, ctx, k, v)
        alone = alone + block.mlp_delta(alone, ctx)
        x = block(x, ctx)
        close(x, tensors[f"act.layer.{number}"])
        close(alone, tensors[f"act.layer.{number}"])
    features = base.finalize(x, ctx)
    for hook in hooks:
        hook.remove()
    for name, value in seen.items():
        close(value, tensors[f"act.{name}"])
    close(features, tensors["act.feat"])
    close(features, tensors["out.feat"])
    close(base.head(features), tensors["out.logits"])


@pytest.mark.parametrize("on", ["logits", "features"])
def test_a_recorded_run_is_reproduced_step_by_step(read_vector, base, on):
    tensors, meta = read_vector("amused_sample_guided")
    first, last = json.loads(meta["temperature"])
    sampling = Sampling(
        num_steps=int(meta["steps"]),
        num_full_steps=int(meta["steps"]),
        schedule=CosineFloor(at_least_one=True),
        draw=GumbelMax(1.0),
        select=Confidence(first, "linear", "float32", last=last),
        guidance=Constant(float(meta["guidance_scale"]) - 1, on),
    )
    ids = torch.cat([tensors["in.cond_ids"], tensors["in.uncond_ids"]])
    base.text.ids = lambda prompts: ids  # the recorded run begins with ids, not words
    close(base.micro, tensors["in.micro_conds"][0])
    records = []
    watch = [SimpleNamespace(on_step=records.append)]
    sampler = Sampler(base, sampling, Accelerator(Always()))
    tokens = sampler.tokens(["", ""], RecordedScheduler(tensors), watch)
    branch = records[0].branches[0]
    for name, rows in (("text", branch.text), ("pooled", branch.pooled)):
        close(rows, torch.cat([tensors[f"in.cond_{name}"], tensors[f"in.uncond_{name}"]]))
    for record in records:
        prefix = f"step{record.index:02d}."
        assert torch.equal(record.tokens, ours(tensors[f"{prefix}tokens"], meta, base))
        halves = [tensors[f"{prefix}feat_{half}"] for half in ("cond", "uncond")]
        close(record.features[0], torch.cat(halves))
        logits = [tensors[f"{prefix}logits_{half}"] for half in ("cond", "uncond")]
        close(base.head(record.features[0]), torch.cat(logits))
        assert int((record.tokens == base.spec.vocab_size)[0].sum()) == json.loads(meta["masked_after"])[record.index]
    assert torch.equal(tokens, ours(tensors["out.tokens"], meta, base))
