"""The stages tokenizer and base, by the recipe of the deeper base at a tiny size."""

import copy
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_parts import composed

from migm.bases.transformer import MaskTransformer
from migm.cifar10.classes import CLASSES
from migm.config.building import build, load
from migm.config.roots import PretrainConfig
from migm.pretraining import fit
from migm.pretraining.masked import BaseSettings, MaskedModule
from migm.runtime.compiling import as_it_is, compiled
from migm.runtime.errors import UserError
from migm.training.optimizer import MuonAdamW

SMALL = [
    *("base.transformer.channels=16", "base.transformer.depth=1", "base.transformer.num_heads=2"),
    *("base.transformer.mlp_channels=16", "base.tokenizer.channels=8", "base.tokenizer.depth=1"),
    *("pretrain.tokenizer.batch_size=10", "pretrain.tokenizer_epochs=1", "pretrain.base.batch_size=10"),
    "pretrain.base_epochs=1",
]


@pytest.fixture
def photos(tmp_path) -> Path:
    """CIFAR-10 of 40 plain photos for training and 20 for testing."""
    for split, count in (("train", 40), ("test", 20)):
        with zipfile.ZipFile(tmp_path / f"cifar10-{split}.zip", "w") as archive:
            for i in range(count):
                with archive.open(f"{CLASSES[i % 10]}/{i}.jpg", "w") as entry:
                    Image.new("RGB", (32, 32), (6 * i, 90, 255 - 6 * i)).save(entry, "JPEG")
    return tmp_path


def run(photos: Path, stages: str, *overrides: str) -> Any:
    """Do as `migm.pretrain` does after its checks of folders."""
    places = f"paths.output_dir={photos / 'outputs'}", f"paths.cifar10={photos}"
    cfg = composed(
        "pretrain",
        "base=cifar10_deep",
        "pretrain=cifar10_deep",
        "device=cpu",
        *places,
        *SMALL,
        f"stages=[{stages}]",
        *overrides,
    )
    config = load(cfg, PretrainConfig)
    base = build({**config.base, "random_weights": True, "dtype": "float32", "tokenizer_dtype": "float32"})
    build(config.pretrain).run(config.stages, base, build(config.runtime))
    return config


def written(photos: Path) -> dict[str, torch.Tensor]:
    return load_file(photos / "outputs" / "cifar10_deep_pretrain" / "base.safetensors")


def test_the_deeper_base_is_made_apart_from_the_bundled_one_and_goes_on_with_shifts(photos, capsys):
    config = run(photos, "tokenizer,base")
    files = {"weights": config.pretrain["weights"], "tokenizer_weights": config.pretrain["tokenizer_weights"]}
    assert all(Path(path).parent == photos / "outputs" / "cifar10_deep_pretrain" for path in files.values())
    build({**config.base, **files, "device": "cpu"}).decode(torch.zeros(1, 256, dtype=torch.long))  # it loads
    said = capsys.readouterr().out
    assert "tokenizer: test PSNR" in said
    assert "base: test cross-entropy" in said
    first, further = written(photos), ["base", f"pretrain.folder={photos / 'further'}", "pretrain.warm_start=true"]
    run(photos, *further, "+base.transformer.dropout=0.1", "pretrain.base.shift=2")
    moved = [float((tensor.float() - first[name].float()).abs().max()) for name, tensor in written(photos).items()]
    assert 0 < max(moved) < 0.2  # four steps, from where it was; a table drawn anew would be at 0.02 times normals
    with pytest.raises(UserError, match="belongs to another recipe"):
        run(photos, *further, "pretrain.base.shift=1")


def test_only_weights_of_the_base_are_replaced(photos):
    with pytest.raises(UserError, match=r"pretrain.tokenizer_weights=null.*say which"):
        run(photos, "tokenizer", "pretrain.tokenizer_weights=null")
    mine = photos / "mine.safetensors"
    save_file({"mine": torch.zeros(1)}, mine)
    before = mine.read_bytes()
    with pytest.raises(UserError, match=r"pretrain.tokenizer_weights=.*mine.safetensors holds other tensors"):
        run(photos, "tokenizer", f"pretrain.tokenizer_weights={mine}")
    assert mine.read_bytes() == before


def test_minutes_become_a_number_of_steps_that_a_later_start_keeps(photos, monkeypatch, capsys):
    run(photos, "tokenizer")
    clock = fit.Clock

    class Steady(clock):
        """Real steps, but 20 of them take 40 seconds."""

        def on_train_batch_end(self, *args: Any) -> None:
            super().on_train_batch_end(*args)
            self.seconds = 40.0

    monkeypatch.setattr(fit, "Clock", Steady)
    run(photos, "base", "pretrain.base_minutes=0.2")
    assert "6 steps in 0.2 minutes" in capsys.readouterr().out
    first = written(photos)
    monkeypatch.setattr(fit, "Clock", None)  # not needed again
    run(photos, "base", "pretrain.base_minutes=0.2")
    assert all(torch.equal(tensor, first[name]) for name, tensor in written(photos).items())


def test_the_clock_starts_after_the_first_steps(monkeypatch):
    times = iter([5.0, 8.0])
    monkeypatch.setattr(fit, "synchronise", lambda device: None)
    monkeypatch.setattr(fit.time, "perf_counter", lambda: next(times))
    clock, trainer = fit.Clock(10), SimpleNamespace(global_step=0, max_steps=30)
    for trainer.global_step in range(1, 31):
        clock.on_train_batch_end(trainer, SimpleNamespace(device=None))  # type: ignore[arg-type]
    assert clock.seconds == 3.0


@pytest.mark.slow
def test_a_compiled_step_has_the_loss_and_the_gradients_of_a_plain_one():
    torch.manual_seed(0)
    net = MaskTransformer(16, 8, 10, channels=24, depth=1, num_heads=2, mlp_channels=24)
    batch = torch.randint(0, 8, (6, 2, 16)), torch.zeros(6, dtype=torch.long)
    found = []
    for fast in (as_it_is, compiled):
        module = MaskedModule(copy.deepcopy(net), 0, BaseSettings(), fast=fast)
        module.net.load_state_dict(net.state_dict())
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        loss = module.training_step(batch, 0)
        loss.backward()
        found.append([loss, *(p.grad for p in module.net.parameters())])
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(plain, fast)


def test_clipping_bounds_what_adamw_sees_alone():
    net = MaskTransformer(16, 8, 10, channels=24, depth=1, num_heads=2, mlp_channels=24)
    module = MaskedModule(net, 0, BaseSettings(clip=1.0))
    optimizer = MuonAdamW(net.named_parameters(), "transformer.", 1e-3, 0.0)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    module.configure_gradient_clipping(optimizer)
    by_adamw = {id(p) for p in optimizer.by_adamw}
    norm = torch.stack([p.grad.norm() for p in net.parameters() if id(p) in by_adamw]).norm()
    assert norm.item() == pytest.approx(1.0, rel=1e-4)
    assert all((p.grad == 1).all() for p in net.parameters() if id(p) not in by_adamw)
