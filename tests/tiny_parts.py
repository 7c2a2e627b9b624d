"""What several test files build: the tiny experiment's config, synthetic trajectories, small feature nets."""

import io
import re
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from migm.bases.base import Branch, Control, Moment
from migm.bases.dimoo import LuminaDiMOO
from migm.bases.halton import HaltonMaskGIT
from migm.bases.halton_net import HaltonTransformer
from migm.bases.llada import LLaDAConfig
from migm.bases.maskgit import MaskGIT
from migm.bases.tokenizer import ConvVQ
from migm.bases.transformer import MaskTransformer
from migm.cifar10.net import CifarNet
from migm.config.building import build, conf_path, load
from migm.config.roots import Common, EvaluateConfig, TrainConfig
from migm.runtime.device import DeviceName
from migm.runtime.files import tensors_hash
from migm.sampling.sampler import Sampler
from migm.trajectories.collect import collect
from migm.trajectories.record import Trajectories
from migm.trajectories.store import Store

ROOT = Path(__file__).parents[1]


def composed(command: str, *overrides: str) -> DictConfig:
    """What Hydra hands to a command, without its own node."""
    with initialize_config_dir(conf_path(), version_base="1.3"):
        return compose(command, list(overrides))


def tiny(output: Path, *overrides: str, command: str = "train", root: type[Common] = TrainConfig) -> Any:
    """The checked config of the tiny experiment, writing below `output`; float32 on one CPU process."""
    fixed = ["+experiment=tiny_shortcut", f"paths.output_dir={output}", "device=cpu"]
    quiet = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.enable_progress_bar=false"]
    return load(composed(command, *fixed, *quiet, "~callbacks.progress", *overrides), root)


def study_config(output: Path, assets: Path, *overrides: str) -> tuple[DictConfig, Any]:
    """What `migm.evaluate` gets of the tiny experiment for points that are all named in `overrides`, and as checked."""
    cfg = composed(
        "evaluate",
        "+experiment=tiny_shortcut",
        f"paths.output_dir={output}",
        f"paths.assets={assets}",
        "metric=[fd_cifarnet,class_agreement]",
        "~points.shortcut",
        "~points.vanilla",
        "~points.reuse",
        *overrides,
    )
    return cfg, load(cfg, EvaluateConfig)


def collected(config: Any) -> Store:
    """Fill the store of a config, as `migm.collect` does."""
    return collect(Sampler(build(config.base), build(config.sampling)), build(config.data), config.seed)


def contents(store: Store) -> dict[str, Tensor]:
    """All trajectories of a store, whatever its shards."""
    shards = [store.open(i) for i in range(len(store.shards))]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def synthetic(images: Sequence[int], counts: Sequence[int] = (2, 3, 1, 3), rows: int = 10) -> Trajectories:
    """Trajectories that are a function of the image's number: `counts` tokens a step, c = 4.

    As many ids of a condition as rows beyond the tokens, one by default; the unconditional half has but one.
    """
    parts = []
    for image in images:
        generator = torch.Generator().manual_seed(image)
        steps = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        features = torch.randn(1, 2, len(counts), rows, 4, generator=generator).bfloat16()
        tokens = torch.randint(0, 24, (1, len(steps)), generator=generator, dtype=torch.int32)
        order = steps[torch.randperm(len(steps), generator=generator)][None].to(torch.int16)
        condition = torch.full((1, 2, rows - len(steps)), -1, dtype=torch.int32)
        condition[:, 0], condition[:, 1, 0] = image % 10, 10
        parts.append((features, tokens, order, condition, torch.tensor([image])))
    return Trajectories(*(torch.cat(x) for x in zip(*parts, strict=True)))


def feature_net(path: Path, width: int = 4, seed: int = 0) -> CifarNet:
    """A random feature net, also written to `path`."""
    torch.manual_seed(seed)
    net = CifarNet(width).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, path)
    return net


def reference_for(net: CifarNet, path: Path, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Reference statistics of random features, as if `net` had made them, also written to `path`."""
    rows = torch.rand(
        4 * net.channels, net.channels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    mean, cov = rows.mean(0), rows.T.cov()
    save_file({"mean": mean, "cov": cov}, path, {"net": tensors_hash(net.state_dict())})
    return mean, cov


def state_dict(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a recorded case, `sd.<name>` in its file."""
    return {key.removeprefix("sd."): value for key, value in tensors.items() if key.startswith("sd.")}


def recorded_transformer(tensors: dict[str, Tensor], meta: dict[str, str], **changes: Any) -> MaskTransformer:
    """The transformer of a recorded case, its sizes taken from the file's metadata."""
    sizes = {"vocab_size": "codebook", "num_classes": "nclass", "channels": "hidden", "depth": "depth"}
    known = {name: int(meta[key]) for name, key in {**sizes, "num_heads": "heads", "mlp_channels": "mlp"}.items()}
    transformer = MaskTransformer(num_tokens=int(meta["side"]) ** 2, **known, **changes)
    transformer.load_state_dict(state_dict(tensors))
    return transformer


def moment(mask_ratio: Tensor) -> Moment:
    """The moment of a pass outside a generation: step 0 of 1, at the mask ratios (b,)."""
    return Moment.at(0, 1, mask_ratio)


def wrap(transformer: MaskTransformer, dtype: str, **changes: Any) -> MaskGIT:
    """A base of this transformer and a small tokenizer."""
    vq = ConvVQ(num_codes=transformer.vocab_size, code_channels=4, channels=8, depth=1)
    torch.nn.init.normal_(vq.quantize.embedding.weight)  # the default is too small to show in 8-bit pixels
    return MaskGIT(transformer, vq, random_weights=True, dtype=dtype, **{"device": "cpu", **changes})


class Watched:
    """A base that notes the moments it is asked at."""

    def __init__(self, base: Any):
        self.base, self.asked = base, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def features(self, tokens: Tensor, branch: Branch, moment: Moment) -> Tensor:
        self.asked.append(moment)
        return self.base.features(tokens, branch, moment)


class Apart:
    """A MaskGIT whose guidance halves are two branches, with sequences of lengths that differ.

    The condition of label y is y, 1 + y % 4 times; all but the first stand for a prompt, one row each in front
    of the image. Those rows and the padding are 7 everywhere; all else is as the wrapped base makes it.
    """

    def __init__(self, base: MaskGIT):
        self.base = base

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def encode(self, inputs: Tensor, guided: bool) -> list[Branch]:
        labels, *rest = self.base.encode(inputs, guided)[0].condition.chunk(2 if guided else 1)
        known = 1 + labels % 4
        prompts = torch.where(torch.arange(int(known.max())) < known, labels, -1)
        return [self.branch(prompts), *map(self.branch, rest)]

    def branch(self, condition: Tensor, length: int | None = None, lengths: Sequence[int] | None = None) -> Branch:
        inner, known = self.base.branch(condition[:, :1]), (condition >= 0).sum(1, keepdim=True)
        lengths = self.base.spec.num_tokens + known
        mask = torch.arange(length or int(lengths.max())) < lengths
        return Branch(condition, inner.rows + known - 1, mask=mask)

    def features(self, tokens: Tensor, branch: Branch, moment: Moment) -> Tensor:
        inner = self.base.features(tokens, self.base.branch(branch.condition[:, :1]), moment)
        places = branch.rows[:, :1] + torch.arange(inner.shape[1])
        sequence = inner.new_full((*branch.mask.shape, inner.shape[2]), 7)
        return sequence.scatter(1, places[..., None].expand_as(inner), inner)

    def control(self, tokens: Tensor, positions: Tensor, branch: Branch, mask: Tensor | None = None) -> Control:
        new = self.base.control(tokens, positions, self.base.branch(branch.condition[:, :1]), mask)
        return new._replace(rows=branch.rows.gather(1, positions), row_mask=branch.mask)


def same_tensors(first: Path, second: Path) -> bool:
    """Whether two safetensors files hold exactly the same tensors."""
    a, b = load_file(first), load_file(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def naming(*words: object) -> str:
    """A pattern for pytest.raises(match=...) that asks for the words in this order."""
    return ".*".join(re.escape(str(word)) for word in words)


MARKERS = {"mask": 30, "newline": 31, "answer": 32, "image": 33, "end_image": 34, "end_answer": 35}


def text_base(seed: int = 0, dtype: str = "float64", **changes: Any) -> LuminaDiMOO:
    """A random base of Lumina-DiMOO's kind: 4x4 tokens of 24 codes, prompts become ids below 30."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vq = ConvVQ(num_codes=24, code_channels=4, channels=8, depth=1)
        torch.nn.init.normal_(vq.quantize.embedding.weight)
        parts: dict[str, Any] = {
            "transformer": LLaDAConfig(48, 4, 2, 64, 60, 10000.0, 1e-5),
            "tokenizer": vq,
            "vocab_size": 24,
            "height": 16,
            "width": 16,
            "markers": MARKERS,
            "system": "draw it",
            "random_weights": True,
            "dtype": dtype,
            "device": "cpu",
        }
        base = LuminaDiMOO(**{**parts, **changes})
        for name, weight in base.transformer.named_parameters():
            if "norm" in name or "ln_f" in name:
                torch.nn.init.uniform_(weight, 0.5, 1.5)  # ones would hide a norm that is left out
        torch.nn.init.normal_(base.transformer.ff_out.weight, std=0.3)  # peaked enough that draws differ
    return base


def halton_base(seed: int = 0, dtype: str = "float64", device: DeviceName = "cpu", **changes: Any) -> HaltonMaskGIT:
    """A random base of Halton-MaskGIT's kind: 4x4 tokens of 24 codes, 10 classes, three heads of 15 of 46 channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {"num_tokens": 16, "vocab_size": 24, "num_classes": 10, "channels": 46, "depth": 2, "num_heads": 3}
        net = HaltonTransformer(**{**sizes, "mlp_channels": 64, "mask_logit": False, **changes})
        for name, weight in net.named_parameters():
            if name.endswith(("ln1.weight", "ln2.weight", "norm_final.weight")):
                torch.nn.init.uniform_(weight, 0.5, 1.5)  # ones would hide a norm that is left out
            elif name.endswith("bias"):
                torch.nn.init.normal_(weight, std=0.3)
        for table in (net.tok_emb, net.cls_emb):
            torch.nn.init.normal_(table.weight, std=0.3)  # peaked enough that draws differ
        vq = ConvVQ(num_codes=24, code_channels=4, channels=8, depth=1)
        torch.nn.init.normal_(vq.quantize.embedding.weight)
        return HaltonMaskGIT(net, vq, random_weights=True, dtype=dtype, device=device)


def write_tar(path: Path, records: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """A tar of key and fields as webdataset writes it."""
    with tarfile.open(path, "w") as tar:
        for key, fields in records:
            for name, value in fields.items():
                data = io.BytesIO()
                torch.save(value, data)
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size = data.tell()
                data.seek(0)
                tar.addfile(info, data)


def smaller_block() -> str:
    """The Python block of the README, with fewer images and steps."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(import migm\n.*?)```", readme, re.DOTALL)
    assert block, "README has no python block that imports migm"
    code, few = block[1], "overrides={'data.num_val_images': 4, 'data.batch_size': 8}"
    smaller = {
        "num_images=704": "num_images=12",
        "max_steps=4000": f"max_steps=8, {few}",
        "num_images=500": "num_images=8",
    }
    for size, less in smaller.items():
        assert size in code
        code = code.replace(size, less)
    return code
