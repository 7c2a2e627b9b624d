"""Published files of Halton-MaskGIT: sizes, names, strict loading, and what its base refuses."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_parts import composed, halton_base, moment, naming

from migm.bases.footprint import footprint, held
from migm.bases.halton import HaltonMaskGIT
from migm.bases.halton_net import HaltonTransformer
from migm.bases.llamagen import USED, LlamaGenVQ
from migm.bases.vqgan import VQGAN
from migm.config.building import build, load
from migm.config.roots import PlanConfig
from migm.runtime.errors import UserError

PUBLISHED = {  # parameters and tensors of the checkpoints, the head's weights among the tensors
    "256_tiny": (23_031_425, 76),
    "256_small": (69_344_769, 142),
    "256_base": (142_224_641, 142),
    "384_small": (69_508_609, 142),
    "384_base": (142_470_401, 142),
    "384_large": (479_984_641, 274),
}
SIZES = {"num_tokens": 16, "vocab_size": 24, "num_classes": 10, "channels": 46, "depth": 2, "num_heads": 3}
VQ = {"ch": 4, "ch_mult": [1, 1, 2], "num_res_blocks": 1, "z_channels": 8, "n_embed": 24, "norm_groups": 2}


@pytest.fixture
def tokens():
    return torch.randint(0, 25, (3, 16), generator=torch.Generator().manual_seed(2))


def transformer(seed=0, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HaltonTransformer(**{**SIZES, "mlp_channels": 64, **changes})


def llamagen(seed=0, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaGenVQ(**{**VQ, **changes})


def config_of(size, *overrides):
    return load(composed("plan", "device=cpu", f"base=halton_{size}", "shortcut=halton", *overrides), PlanConfig)


@pytest.mark.parametrize("size", PUBLISHED)
def test_a_published_size_has_its_parameters_file_and_sampler(size):
    config = config_of(size)
    with torch.device("meta"):
        net = build(config.base["transformer"])
    state = net.state_dict()
    assert (sum(t.numel() for t in state.values()), len(state) + 1) == PUBLISHED[size]
    assert config.base["weights"] == f"hf://llvictorll/Halton-MaskGIT/ImageNet_{size}.pth"
    assert net.num_tokens == (int(size[:3]) // 16) ** 2
    sampling = build(config.sampling)
    assert sampling.order.roll is False
    assert sum(sampling.schedule.counts(net.num_tokens, sampling.num_steps)) == net.num_tokens


@pytest.mark.parametrize("kind", ["plain", "int8_weights"])
def test_its_memory_is_said_before_it_is_built(kind):
    small = [f"base.{name}={value}" for name, value in SMALL.items()]
    node = config_of("256_small", *small, "base.dtype=bfloat16", f"base.linear={kind}").base
    said, made = footprint(node), build(node)
    assert said is not None
    assert (said.transformer, said.tokenizer) == (held(made.transformer), held(made.tokenizer))
    assert made.transformer.transformer.layers[0].mlp[1].weight.dtype == torch.bfloat16  # what modulates stays


SMALL = {
    "random_weights": "true",
    "transformer.num_tokens": 16,
    "transformer.channels": 32,
    "transformer.depth": 2,
    "transformer.mlp_channels": 64,
    "transformer.vocab_size": 24,
    "tokenizer.ch": 4,
    "tokenizer.ch_mult": [1, 1, 2],
    "tokenizer.z_channels": 8,
    "tokenizer.n_embed": 24,
    "tokenizer.norm_groups": 2,
}


def published_transformer(net, wrapper=""):
    """A checkpoint as the authors save it: both names of the one table, and what else they keep."""
    tensors = {**net.state_dict(), "head.weight": net.tok_emb.weight.data}
    return {
        "iter": 3,
        "global_epoch": 1,
        "model_state_dict": {wrapper + name: value for name, value in tensors.items()},
        "optimizer_state_dict": None,
    }


def published_tokenizer(vq):
    """A checkpoint under LlamaGen's names."""
    rules = (
        (r"^vq\.", ""),
        (r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.resnets\.", r"\1.conv_blocks.\2.res."),
        (r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.attentions\.", r"\1.conv_blocks.\2.attn."),
        (r"down_blocks\.(\d+)\.downsamplers\.0\.", r"conv_blocks.\1.downsample."),
        (r"up_blocks\.(\d+)\.upsamplers\.0\.", r"conv_blocks.\1.upsample."),
        (r"mid_block\.resnets\.0\.", "mid.0."),
        (r"mid_block\.attentions\.0\.", "mid.1."),
        (r"mid_block\.resnets\.1\.", "mid.2."),
        (r"\.group_norm\.", ".norm."),
        (r"\.to_([qkv])\.", r".\1."),
        (r"\.to_out\.0\.", ".proj_out."),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
    )
    named = {USED: torch.zeros(9)}
    for name, value in vq.state_dict().items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        matrix = re.search(r"\.(?:[qkv]|proj_out)\.weight$", name)
        named[name] = value[..., None, None] if matrix else value
    named["quantize.embedding.weight"] = 3 * named["quantize.embedding.weight"]  # trained codes have any length
    return {"model": named}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A random base's files in the published layout."""
    folder = tmp_path_factory.mktemp("published")
    torch.save(published_transformer(transformer(seed=5)), folder / "base.pth")
    torch.save(published_tokenizer(llamagen(seed=5)), folder / "vq.pt")
    return folder


def loaded(weights, tokenizer_weights, net=None, vq=None):
    parts = (net or transformer(), vq or llamagen(), weights, tokenizer_weights)
    return HaltonMaskGIT(*parts, dtype="float32", device="cpu")


def test_published_files_load_and_give_the_same_features_and_images(files, tokens):
    base = loaded(files / "base.pth", files / "vq.pt")
    own = HaltonMaskGIT(transformer(seed=5), llamagen(seed=5), random_weights=True, dtype="float32", device="cpu")
    branches = [each.encode(torch.tensor([3, 0, 9]), guided=True)[0] for each in (base, own)]
    ours, its = (each.features(tokens, b, moment(torch.ones(3))) for each, b in zip((base, own), branches, strict=True))
    assert torch.equal(ours, its)
    assert base.fingerprint() == own.fingerprint()
    codes = tokens.clamp(max=23)
    assert (base.decode(codes).int() - own.decode(codes).int()).abs().max() <= 1  # codes were divided by their length


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_several_devices_and_of_the_compiler_are_read(files, tmp_path, wrapper):
    torch.save(published_transformer(transformer(seed=5), wrapper), tmp_path / "base.pth")
    base = loaded(tmp_path / "base.pth", files / "vq.pt")
    assert base.fingerprint() == loaded(files / "base.pth", files / "vq.pt").fingerprint()


def test_own_safetensors_load_with_and_without_the_second_name_of_the_table(files, tmp_path):
    net = transformer(seed=5)
    save_file(net.state_dict(), tmp_path / "one.safetensors")
    save_file({**net.state_dict(), "head.weight": net.tok_emb.weight.data.clone()}, tmp_path / "two.safetensors")
    bases = [loaded(tmp_path / f"{name}.safetensors", files / "vq.pt") for name in ("one", "two")]
    assert bases[0].fingerprint() == bases[1].fingerprint() == loaded(files / "base.pth", files / "vq.pt").fingerprint()


# --- Refusals ---


def refusal(call, kind=(UserError, ValueError, FileNotFoundError)):
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channels": 48}, ["cls_emb.weight is (11, 46) instead of (11, 48)"]),
        ({"depth": 3}, ["lacks transformer.layers.2.", "and 8 more"]),
        ({"num_tokens": 25}, ["pos_emb.weight is (16, 46) instead of (25, 46)"]),
        ({"num_classes": 5}, ["cls_emb.weight is (11, 46) instead of (6, 46)"]),
        ({"mlp_channels": 32}, ["ff.w1.weight is (64, 46) instead of (32, 46)"]),
    ],
)
def test_a_checkpoint_of_another_size_is_refused(files, changes, words):
    message = refusal(lambda: loaded(files / "base.pth", files / "vq.pt", net=transformer(**changes)))
    assert re.search(naming(f"base.weights={files / 'base.pth'} does not fit", *words), message), message


def test_a_checkpoint_of_another_family_is_refused(files, tmp_path, make_transformer):
    torch.save({"model_state_dict": make_transformer().state_dict()}, tmp_path / "maskgit.pth")
    message = refusal(lambda: loaded(tmp_path / "maskgit.pth", files / "vq.pt"))
    assert "base.weights=" in message
    assert "lacks cls_emb.weight" in message


def test_a_head_of_its_own_is_refused(files, tmp_path):
    content = published_transformer(transformer(seed=5))
    content["model_state_dict"]["head.weight"] = torch.ones(25, 46)
    torch.save(content, tmp_path / "base.pth")
    message = refusal(lambda: loaded(tmp_path / "base.pth", files / "vq.pt"))
    assert message.startswith(f"base.weights={tmp_path / 'base.pth'}: head.weight is not tok_emb.weight")


class Code:
    def __reduce__(self):
        return Path, ("x",)


def test_files_that_are_missing_broken_or_hold_code_are_refused(files, tmp_path):
    nowhere, broken, code = tmp_path / "no.pth", tmp_path / "broken.pth", tmp_path / "code.pth"
    assert f"base.weights={nowhere}: no such file" in refusal(lambda: loaded(nowhere, files / "vq.pt"))
    assert "base.weights=None" in refusal(lambda: loaded(None, files / "vq.pt"))
    assert "base.tokenizer_weights=None" in refusal(lambda: loaded(files / "base.pth", None))
    broken.write_bytes((files / "base.pth").read_bytes()[:1000])
    assert f"base.weights={broken} is not a complete" in refusal(lambda: loaded(broken, files / "vq.pt"))
    torch.save({"model_state_dict": Code()}, code, pickle_module=pickle)
    assert f"base.weights={code} is refused" in refusal(lambda: loaded(code, files / "vq.pt"))


def test_another_tokenizer_s_file_is_refused(files, tmp_path):
    config = {"ch": 4, "ch_mult": [1, 2], "num_res_blocks": 1, "z_channels": 8, "in_channels": 3, "out_ch": 3}
    taming = VQGAN({**config, "resolution": 32, "attn_resolutions": [16]}, 24, 8, norm_groups=2).state_dict()
    state = {name.removeprefix("vq."): value for name, value in taming.items()}
    torch.save({"state_dict": state}, tmp_path / "taming.ckpt")
    message = refusal(lambda: loaded(files / "base.pth", tmp_path / "taming.ckpt"))
    assert message.startswith(f"base.tokenizer_weights={tmp_path / 'taming.ckpt'} does not fit")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: loaded(None, None, vq=llamagen(n_embed=30)), ["base.transformer.vocab_size=24", "has 30 codes"]),
        (lambda: loaded(None, None, net=transformer(num_tokens=15)), ["num_tokens=15 must be a square"]),
        (lambda: transformer(num_heads=47), ["base.transformer.num_heads=47", "at most base.transformer.channels=46"]),
        (lambda: halton_base().encode(torch.tensor([1, 10]), True), ["labels=[10]", "0 to 9"]),
        (lambda: halton_base().review(torch.tensor([-1])), ["labels=[-1]", "0 to 9"]),
        (lambda: halton_base().review(["a dog"]), ["prompts=['a dog']", "labels from 0 to 9"]),
        (lambda: halton_base().tokenize(torch.zeros(1, 3, 16, 20, dtype=torch.uint8)), ["20x16 pixels", "16x16"]),
        (lambda: HaltonMaskGIT(transformer(), llamagen(), random_weights=True, device="cpu", linear="fp8_rowwise"),
         ["base.linear=fp8_rowwise", "wq is 45 x 46", "base.linear=int8_weights or plain"]),
    ],
)  # fmt: skip
def test_what_the_base_cannot_do_is_refused(call, words):
    assert re.search(naming(*words), refusal(call))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+base.transformer.dropout=0.1", ["base.transformer.dropout"]),
        ("sampling.draw.top_k=-1", ["sampling.draw.top_k", "-1"]),
        ("sampling.order.roll=perhaps", ["sampling.order.roll", "perhaps"]),
        ("+sampling.schedule.sched_pow=2", ["sampling.schedule.sched_pow"]),
        ("base.tokenizer.ch_mult=[]", ["base.tokenizer.ch_mult"]),
    ],
)
def test_values_that_cannot_be_are_refused_by_their_key(override, words):
    with pytest.raises(UserError, match=naming(*words)):
        config_of("256_tiny", override)


def test_more_steps_than_tokens_are_refused():
    sampling = build(config_of("256_tiny", "sampling.num_steps=257").sampling)
    with pytest.raises(ValueError, match=r"sampling\.num_steps=257 must be between 1 and the 256 tokens"):
        sampling.schedule.counts(256, sampling.num_steps)
