"""What several test files build: the tiny experiment's config, synthetic trajectories, small feature nets."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from migm.bases.maskgit import MaskGIT
from migm.bases.tokenizer import ConvVQ
from migm.bases.transformer import MaskTransformer
from migm.collect import collect, trajectory_sampling
from migm.config import Common, TrainConfig, build, conf_path, load
from migm.evaluation.cifarnet import CifarNet
from migm.runtime import tensors_hash
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


def collected(config: Any) -> Store:
    """Fill the store of a config, as `migm.collect` does."""
    base, sampling, data = build(config.base), build(config.sampling), build(config.data)
    known = trajectory_sampling(config.sampling)
    return collect(base, sampling, data, config.seed, config.evalset["num_classes"], known)


def contents(store: Store) -> dict[str, Tensor]:
    """All trajectories of a store, whatever its shards."""
    shards = [store.open(i) for i in range(len(store.shards))]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def synthetic(images: Sequence[int], counts: Sequence[int] = (2, 3, 1, 3), rows: int = 10) -> Trajectories:
    """Trajectories that are a function of the image's number: `counts` tokens a step, c = 4, one class row."""
    parts = []
    for image in images:
        generator = torch.Generator().manual_seed(image)
        steps = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        features = torch.randn(1, 2, len(counts), rows, 4, generator=generator).bfloat16()
        tokens = torch.randint(0, 24, (1, len(steps)), generator=generator, dtype=torch.int32)
        order = steps[torch.randperm(len(steps), generator=generator)][None].to(torch.int16)
        parts.append((features, tokens, order, torch.tensor([image % 10]), torch.tensor([image])))
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


def wrap(transformer: MaskTransformer, dtype: str) -> MaskGIT:
    """A base of this transformer and a small tokenizer."""
    vq = ConvVQ(num_codes=transformer.vocab_size, code_channels=4, channels=8, depth=1)
    torch.nn.init.normal_(vq.quantize.embedding.weight)  # the default is too small to show in 8-bit pixels
    return MaskGIT(transformer, vq, random_weights=True, dtype=dtype, device="cpu")


def same_tensors(first: Path, second: Path) -> bool:
    """Whether two safetensors files hold exactly the same tensors."""
    a, b = load_file(first), load_file(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def naming(*words: object) -> str:
    """A pattern for pytest.raises(match=...) that asks for the words in this order."""
    return ".*".join(re.escape(str(word)) for word in words)
