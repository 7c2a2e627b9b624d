"""Recipe of the bundled assets, stage by stage; each stage resumes where it stopped."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from torch import Tensor, nn

from migm.bases.dimoo import LuminaDiMOO
from migm.bases.layout import padded_ids
from migm.bases.llada import PREFIX, LLaDA
from migm.bases.maskgit import MaskGIT
from migm.bases.shards import load_shards
from migm.bases.tokenizer import ConvVQ
from migm.bases.transformer import MaskTransformer
from migm.bases.weights import load_strictly, read_tensors
from migm.cifar10 import classes as cifar10
from migm.cifar10.net import CifarNet, load_cifarnet
from migm.metrics.frechet import frechet_distance, moments
from migm.pretraining.feature_net import FeatureNetModule, accuracy
from migm.pretraining.fit import Rows, fit, steps_within
from migm.pretraining.masked import BaseSettings, MaskedModule, masked_loss
from migm.pretraining.text import build_tokenizer, captions_of, facts_of_photos, say, write_prompts
from migm.pretraining.text_base import TextModule
from migm.pretraining.text_base import masked_loss as text_loss
from migm.pretraining.vq import TokenizerSettings, VQModule, reconstruct
from migm.runtime.compiling import PLAIN, Runtime
from migm.runtime.console import Plain
from migm.runtime.errors import UserError
from migm.runtime.files import tensors_hash, write_atomic, write_tensors
from migm.runtime.kinds import NotNegative, Positive, Seed, Stage
from migm.runtime.owned import only, own, refuse_foreign
from migm.runtime.progress import progress

ASSETS = Path(__file__).parents[1] / "assets"
NAMES = rf"hydra|({'|'.join(get_args(Stage))})(\.safetensors)?|tokens-.*\.safetensors(\.tmp)?"  # names in `folder`
HELD = slice(None, None, 5)  # 2,000 of the test photos, which come class by class
CAPTIONS = 4  # captions per photo, from which the text-to-image base draws


class Recipe:
    """Train the assets: checkpoints go into `folder`, files to bundle into `assets`.

    A base goes into `weights`, its tokenizer into `tokenizer_weights`, where the base reads them. `warm_start` starts a
    base from what is there instead of from scratch, so that a later run can improve it. With `base_minutes` the stage
    base makes as many steps as it is measured to make in that time, in place of `base_epochs`.
    """

    def __init__(
        self,
        cifar10: str | Path,
        folder: str | Path,
        assets: str | Path,
        seed: Seed,
        perceptual_epochs: NotNegative,
        features_epochs: NotNegative,
        tokenizer_epochs: NotNegative,
        base_epochs: NotNegative,
        text_base_epochs: NotNegative,
        weights: str | Path | None = None,
        tokenizer_weights: str | Path | None = None,
        base_minutes: Positive | None = None,
        warm_start: bool = False,
        tokenizer: TokenizerSettings = TokenizerSettings(),  # noqa: B008  frozen
        base: BaseSettings = BaseSettings(),  # noqa: B008
    ):
        self.source, self.folder, self.assets, self.seed = Path(cifar10), Path(folder), Path(assets), seed
        self.files = {"weights": weights, "tokenizer_weights": tokenizer_weights}
        self.epochs = {
            "perceptual": perceptual_epochs,
            "features": features_epochs,
            "tokenizer": tokenizer_epochs,
            "base": base_epochs,
            "text_base": text_base_epochs,
        }
        self.minutes, self.warm_start, self.console = base_minutes, warm_start, Plain()
        self.of_tokenizer, self.of_base = tokenizer, base

    def run(self, stages: Sequence[str], base: MaskGIT | LuminaDiMOO, runtime: Runtime = PLAIN) -> None:
        """Run `stages` in their given order; the stages base and text_base train the transformer of `base`.

        `runtime` says whether the stage base is compiled.
        """
        if {"base", "text_base"} & set(stages) and base.linear != "plain":
            raise UserError(f"base.linear={base.linear} cannot be trained; choose base.linear=plain")
        bundled = "|".join(re.escape(path.name) for path in ASSETS.iterdir())
        refuse_foreign(self.assets, "assets", "paths.assets", only(self.assets, bundled))
        own(self.folder, "pretraining", "pretrain.folder", only(self.folder, NAMES))
        for stage in stages:
            start = time.perf_counter()
            torch.manual_seed(self.seed)
            if stage == "tokenizer":
                self.tokenizer(base.tokenizer.requires_grad_(True).train())  # type: ignore[arg-type]
            elif stage == "base":
                self.base(base, runtime)  # type: ignore[arg-type]
            elif stage == "text_base":
                self.text_base(base)  # type: ignore[arg-type]
            else:
                getattr(self, stage)()
            self.console.print(f"{stage}: {time.perf_counter() - start:.0f} s")

    def _file(self, name: str, module: nn.Module) -> Path:
        """Return where the weights of the module go; UserError if nowhere, or over a file of something else."""
        path = self.files[name]
        if path is None:
            raise UserError(f"pretrain.{name}=null: the base reads no such file; say which one to write")
        if Path(path).exists() and read_tensors(path, f"pretrain.{name}")[0].keys() != module.state_dict().keys():
            raise UserError(f"pretrain.{name}={path} holds other tensors; it is not replaced, name a new file")
        return Path(path)

    def perceptual(self) -> None:
        """Train the classifier of the tokenizer's loss, smaller and with another seed than the feature net."""
        self._classifier("perceptual", self.folder / "perceptual.safetensors", width=16, seed=self.seed + 7)

    def features(self) -> None:
        """Train the feature net of `fd_cifarnet` and `class_agreement`."""
        self._classifier("features", self.assets / "cifarnet.safetensors", width=32, seed=self.seed)

    def _classifier(self, stage: str, path: Path, width: int, seed: int) -> None:
        images, labels = cifar10.load(self.source, "train")
        torch.manual_seed(seed)
        net = CifarNet(width)
        module = FeatureNetModule(net, seed, learning_rate=0.2)
        recipe = {"width": width, "seed": seed}
        self._fit(stage, module, Rows(images, labels), 256, recipe)
        save(net, path)
        right = accuracy(net, *cifar10.load(self.source, "test"))
        self.console.print(f"{stage}: test accuracy {right:.4f}, written to {path}")

    def tokenizer(self, vq: ConvVQ) -> None:
        """Train the VQ autoencoder, with the perceptual classifier in its loss if the settings weigh it."""
        if not isinstance(vq, ConvVQ):
            raise UserError("stages=[tokenizer] trains a ConvVQ; choose base=cifar10 or base=cifar10_deep")
        perceptual, settings, path = None, self.of_tokenizer, self._file("tokenizer_weights", vq)
        recipe: dict[str, Any] = {"seed": self.seed, **asdict(settings)}
        if settings.perceptual_weight:
            perceptual = CifarNet(16).to(memory_format=torch.channels_last)
            load_strictly(perceptual, self.folder / "perceptual.safetensors", "pretrain.folder")
            recipe["perceptual"] = tensors_hash(perceptual.state_dict())
        images, _ = cifar10.load(self.source, "train")
        self._fit("tokenizer", VQModule(vq, perceptual, self.seed, settings), Rows(images), settings.batch_size, recipe)
        save(vq, path)
        images, _ = cifar10.load(self.source, "test")
        error = (reconstruct(vq.eval(), images).float() - images.float()).div(127.5).square().mean((1, 2, 3))
        psnr = float((10 * torch.log10(4 / error)).mean())
        self.console.print(f"tokenizer: test PSNR {psnr:.2f} dB, written to {path}")

    def base(self, base: MaskGIT, runtime: Runtime) -> None:
        """Train the masked transformer on tokens of every photo and its mirror image, or of new crops of them."""
        vq, settings = base.tokenizer, self.of_base
        if not isinstance(base, MaskGIT) or not isinstance(vq, ConvVQ):
            raise UserError("stages=[base] trains a MaskGIT with a ConvVQ; choose base=cifar10 or base=cifar10_deep")
        path = self._file("weights", base.transformer)
        load_strictly(vq, self.files["tokenizer_weights"], "pretrain.tokenizer_weights")
        vq = vq.eval().to(memory_format=torch.channels_last)
        seen = cifar10.load(self.source, "train") if settings.shift else self._tokens(vq, "train")
        net = base.transformer.requires_grad_(True).train()
        fast = runtime.fast(base.device, sum(weight.numel() for weight in net.parameters()))
        module = MaskedModule(net, self.seed, settings, vq, fast)
        if self.warm_start:
            load_strictly(net, path, "pretrain.weights")
        about = {"warm_start": self.warm_start, "tokenizer": tensors_hash(vq.state_dict()), **asdict(settings)}
        average = EMAWeightAveraging(decay=settings.average)
        self._fit("base", module, Rows(*seen), settings.batch_size, {"seed": self.seed, **about}, average)
        save(net, path)
        tokens, labels = self._tokens(vq, "test")
        net.to(base.device).eval()
        held = tokens[HELD, 0].long().to(base.device), labels[HELD].to(base.device)
        self._print_losses("base", lambda ratio: masked_loss(net, *held, ratio), path)

    def words(self) -> None:
        """Write the text tokenizer, and captions as prompts.

        Captions of training photos are for collecting trajectories, those of test photos for evaluation.
        """
        folder = self.assets / "dimoo_tiny"
        write_atomic(folder / "tokenizer.json", build_tokenizer().to_str(pretty=True))
        for split, count in (("train", 2000), ("test", 5000)):
            photos = cifar10.load(self.source, split)
            write_prompts(captions_of(*photos, self.seed), self.assets / f"prompts_{split}.txt", count)
        self.console.print(f"words: tokenizer and prompts written to {self.assets}")

    def text_base(self, base: LuminaDiMOO) -> None:
        """Train the text-to-image transformer on the tokens of all photos, with captions instead of labels."""
        if not isinstance(base, LuminaDiMOO) or not isinstance(base.tokenizer, ConvVQ):
            raise UserError("stages=[text_base] trains a LuminaDiMOO with a ConvVQ; choose base=dimoo_tiny")
        folder = self.assets / "dimoo_tiny"
        load_strictly(base.tokenizer, self.files["tokenizer_weights"], "pretrain.tokenizer_weights")
        tokens, _ = self._tokens(base.tokenizer, "train")
        facts = facts_of_photos(*cifar10.load(self.source, "train"))
        encoded = [[base.template(text) for text in say(facts, self.seed + i)] for i in range(CAPTIONS)]
        padded = padded_ids([ids for variant in encoded for ids in variant], torch.device("cpu"))
        conditions = padded.unflatten(0, (CAPTIONS, -1)).transpose(0, 1).to(torch.int16).contiguous()
        if self.warm_start:
            load_shards(base.transformer, folder, "pretrain.assets", PREFIX, base.device, base.dtype)
        module = TextModule(base, self.seed)
        recipe = {"seed": self.seed, "warm_start": self.warm_start, "tokenizer": base.decoder_fingerprint()}
        self._fit("text_base", module, Rows(tokens, conditions), 64, recipe, EMAWeightAveraging(decay=0.998))
        save_checkpoint(base.transformer, folder)
        tokens, _ = self._tokens(base.tokenizer, "test")
        base.transformer.to(base.device).eval()
        captions = say(facts_of_photos(*(x[HELD] for x in cifar10.load(self.source, "test"))), self.seed)
        held = tokens[HELD, 0].long().to(base.device)
        self._print_losses("text_base", lambda ratio: text_loss(base, held, captions, ratio), folder)

    def _tokens(self, vq: ConvVQ, split: str) -> tuple[Tensor, Tensor]:
        """Return int16 tokens (n, 2, l) of photos and their mirror images, and labels (n,); cached in `folder`."""
        path = self.folder / f"tokens-{split}-{tensors_hash(vq.state_dict())}.safetensors"
        if not path.exists():
            images, labels = cifar10.load(self.source, split)
            vq = vq.eval().to(memory_format=torch.channels_last)
            rows = []
            with progress(self.console, "photos") as bar:
                task = bar.add_task(f"tokens of {split}", total=len(images))
                for part in images.split(500):
                    rows.append(torch.stack([vq.to_tokens(part), vq.to_tokens(part.flip(-1))], 1).cpu().to(torch.int16))
                    bar.advance(task, len(part))
            write_tensors({"tokens": torch.cat(rows), "labels": labels}, path)
        tensors, _ = read_tensors(path, "pretrain.folder")
        return tensors["tokens"], tensors["labels"]

    def reference(self) -> None:
        """Write mean and covariance of the 50,000 training photos' features, and print the test photos' distance."""
        net = load_cifarnet(str(self.assets / "cifarnet.safetensors"))
        train, test = (self._moments(net, split) for split in ("train", "test"))
        path = self.assets / "cifarnet_train50k.safetensors"
        about = {"net": tensors_hash(net.state_dict()), "images": "50000"}
        write_tensors({"mean": train[0], "cov": train[1]}, path, about)
        self.console.print(f"reference: test photos are at {frechet_distance(*train, *test):.3f}, written to {path}")

    def _moments(self, net: CifarNet, split: str) -> tuple[Tensor, Tensor]:
        images, _ = cifar10.load(self.source, split)
        features = torch.cat([net.embed(part)[0].double() for part in images.split(500)])
        return moments(torch.tensor(len(features)), features.sum(0), features.T @ features)

    def _fit(
        self, stage: str, module: LightningModule, data: Rows, batch_size: int, recipe: dict[str, Any], *more: Callback
    ) -> None:
        if stage == "base" and self.minutes is not None:
            steps = steps_within(self.minutes, module, data, self.folder / stage, batch_size, self.console)
        else:
            steps = round(self.epochs[stage] * len(data) / batch_size)
        fit(module, data, self.folder / stage, batch_size, steps, recipe, more)

    def _print_losses(self, stage: str, loss_at: Callable[[float], float], path: Path) -> None:
        shown = ", ".join(f"{loss_at(ratio):.3f} at {ratio}" for ratio in (1, 0.75, 0.5, 0.25))
        self.console.print(f"{stage}: test cross-entropy {shown} masked; written to {path}")


def save_checkpoint(net: LLaDA, folder: Path) -> None:
    """Write a LLaDA transformer in its published format, in bfloat16: `config.json`, `model.safetensors`."""
    tensors = {PREFIX + k: v.detach().cpu().bfloat16().contiguous() for k, v in net.state_dict().items()}
    net.config.write(folder / "config.json")
    write_tensors(tensors, folder / "model.safetensors")


def save(module: nn.Module, path: Path) -> None:
    """Write the module's tensors as safetensors; a transformer's in bfloat16, the precision it runs in."""
    half = isinstance(module, MaskTransformer)
    tensors = {k: (v.bfloat16() if half else v).detach().cpu().contiguous() for k, v in module.state_dict().items()}
    write_tensors(tensors, path)
