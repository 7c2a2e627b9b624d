"""What a run takes from its machine: the dtype of the base and the precision of a training."""

import lightning as L
import pytest
import torch

import migm.pretraining.fit as pretraining
from migm.pretraining.fit import Rows
from migm.runtime import device as device_module
from migm.runtime.device import pick_dtype, pick_precision, product_seconds
from migm.runtime.errors import command

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
MACHINES = {  # AMX, AVX512-BF16, seconds of a product in float32 and in bfloat16
    "plain": (False, False, [1.0, 0.1]),
    "Intel with AMX": (True, True, [1.0, 0.2]),
    "Intel without AMX": (False, True, [1.0, 1.5]),
    "AMD with AVX512-BF16": (False, True, [1.0, 0.6]),
    "hardly faster": (False, True, [1.0, 0.9]),
}


def become(monkeypatch, machine: str) -> None:
    amx, vectors, seconds = MACHINES[machine]
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: vectors)
    monkeypatch.setattr(device_module, "product_seconds", lambda dtypes: seconds)


@pytest.mark.parametrize(
    ("machine", "device", "fast"),
    [
        ("plain", CPU, False),
        ("Intel without AMX", CPU, False),
        ("Intel with AMX", CPU, True),
        ("AMD with AVX512-BF16", CPU, True),
        ("hardly faster", CPU, False),
        ("plain", CUDA, True),
    ],
)
def test_auto_is_bfloat16_only_where_that_is_the_faster_one(monkeypatch, machine, device, fast):
    become(monkeypatch, machine)
    assert pick_dtype("auto", device) == (torch.bfloat16 if fast else torch.float32)
    assert pick_precision("auto", device) == ("bf16-mixed" if fast else "32-true")


def test_products_are_timed_without_those_that_prepare_them():
    seconds = product_seconds((torch.float32, torch.float64), rounds=3)
    assert len(seconds) == 2
    assert 0 < seconds[0] < seconds[1]  # float64 has half the values in a register


@pytest.mark.parametrize("machine", ["plain", "Intel with AMX"])
def test_what_is_asked_for_is_taken_on_every_machine(monkeypatch, machine):
    become(monkeypatch, machine)
    assert pick_dtype("bfloat16", CPU) == torch.bfloat16
    assert pick_dtype("float32", CPU) == torch.float32
    for name in ("32-true", "bf16-mixed", "64-true", "32"):
        assert pick_precision(name, CPU) == name
        L.Trainer(accelerator="cpu", precision=pick_precision(name, CPU), logger=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(("machine", "precision"), [("plain", "32-true"), ("Intel with AMX", "bf16-mixed")])
def test_pretraining_follows_the_machine(monkeypatch, tmp_path, machine, precision):
    class Made(Exception):
        pass

    def trainer(**options):
        raise Made(options["precision"])

    become(monkeypatch, machine)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(pretraining.L, "Trainer", trainer)
    with pytest.raises(Made, match=precision):
        pretraining.fit(L.LightningModule(), Rows(torch.zeros(4, 1)), tmp_path, 2, 1, {"seed": 0})


def out_of_memory_on_a_gpu():
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which 3.25 GiB is "
        "free. Of the allocated memory 70.00 GiB is allocated by PyTorch. If reserved but unallocated memory is large"
    )


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (out_of_memory_on_a_gpu, "out of memory (CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total"),
        (lambda: torch.empty(2**60, dtype=torch.uint8), "tried to allocate 1152921504606846976 bytes"),
        (lambda: bytearray(2**62), "out of memory (MemoryError)"),
    ],
)
def test_a_batch_that_does_not_fit_is_one_line_that_says_what_to_make_smaller(fail, words, capsys):
    with pytest.raises(SystemExit) as end:
        command(fail)()
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.count("\n") == 1
    assert words in said
    assert "evalset.batch_size" in said
    assert "If reserved" not in said


def test_a_failed_compilation_is_one_line_that_says_how_to_do_without(capsys):
    failed = type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"})

    def compile_it():
        raise failed("CppCompileError: C++ compile error\n\nCommand:\ng++ x.cpp\nOutput: Python.h: No such file")

    with pytest.raises(SystemExit) as end:
        command(compile_it)()
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.count("\n") == 1
    assert "could not be compiled here (CppCompileError: C++ compile error); choose runtime.compile=false" in said
    assert "Command" not in said


def test_an_error_of_the_program_itself_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        command(lambda: torch.ones(2, 3) @ torch.ones(2, 3))()
