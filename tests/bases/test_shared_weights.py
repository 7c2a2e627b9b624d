"""Processes of one machine share the pages of a frozen base's file instead of having a copy each."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_parts import moment, wrap
from together import context

from migm.bases.maskgit import MaskGIT
from migm.bases.transformer import MaskTransformer

SIZES = {"num_tokens": 16, "vocab_size": 64, "num_classes": 10, "depth": 4, "num_heads": 4}
MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")
WIDE = {**SIZES, "channels": 512, "mlp_channels": 2048}  # 50 MB


def files_of(folder: Path, base: MaskGIT) -> list[Path]:
    """Transformer and tokenizer as weight files."""
    parts = {"base": base.transformer, "tokenizer": base.tokenizer}
    for name, part in parts.items():
        tensors = {key: tensor.contiguous() for key, tensor in part.state_dict().items()}
        save_file(tensors, folder / f"{name}.safetensors")
    return [folder / f"{name}.safetensors" for name in parts]


def loaded(files: list[Path], dtype: str, **sizes: Any) -> MaskGIT:
    blank = wrap(MaskTransformer(**sizes), "float32")
    return MaskGIT(blank.transformer, blank.tokenizer, *files, dtype=dtype, device="cpu")


def megabytes(file: Path) -> float:
    """Return this process's share of the pages of a mapped file: a page of two processes counts half in each."""
    share, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if MAPPING.match(line):
            ours = line.endswith(str(file))
        elif ours and line.startswith("Pss:"):
            share += int(line.split()[1])
    return share / 1024


def using(files: list[Path], dtype: str, ready: Any, measured: Any, answers: Any) -> None:
    """Load and run the base, and tell its share of the file while the other process has done so too."""
    torch.set_num_threads(1)
    base = loaded(files, dtype, **WIDE)
    branch = base.encode(torch.tensor([1]), guided=False)[0]
    base.features(torch.zeros(1, 16, dtype=torch.long), branch, moment(torch.ones(1)))
    ready.wait()
    answers.put(megabytes(files[0]))
    measured.wait()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the kernel does not tell shares of memory")
@pytest.mark.parametrize(("dtype", "shared"), [("float32", True), ("float64", False)])
def test_two_processes_share_the_pages_of_the_weights(tmp_path, dtype, shared):
    files = files_of(tmp_path, wrap(MaskTransformer(**WIDE), "float32"))
    size = files[0].stat().st_size / 2**20
    answers, barriers = context.Queue(), [context.Barrier(2), context.Barrier(2)]
    processes = [context.Process(target=using, args=(files, dtype, *barriers, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=200) for _ in processes]
    for process in processes:
        process.join()
    for own in found:  # half of the pages each, where they are the file's; converted ones are a process's own
        assert 0.45 * size < own < 0.55 * size if shared else own < 0.1 * size, (own, size)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shared_weights_compute_what_copied_ones_do(tmp_path, dtype, make_transformer):
    made = wrap(make_transformer(), "float32")
    files = files_of(tmp_path, made)
    sizes = {**SIZES, "vocab_size": 24, "channels": 48, "depth": 2, "mlp_channels": 96}
    base = loaded(files, dtype, **sizes)
    copied = wrap(made.transformer, dtype)
    copied.transformer.load_state_dict(made.transformer.state_dict())
    tokens = torch.arange(16)[None] % 24
    branch = base.encode(torch.tensor([1]), guided=True)[0]
    ours, theirs = (b.features(tokens, branch, moment(torch.ones(1))) for b in (base, copied))
    assert torch.equal(ours, theirs)
    assert base.fingerprint() == copied.fingerprint()
    assert not any(p.requires_grad for p in base.transformer.parameters())
    before = files[0].read_bytes()
    with torch.no_grad():
        base.transformer.bias.add_(1)  # a change stays in the process
    assert files[0].read_bytes() == before
