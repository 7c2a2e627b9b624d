"""What is compiled and captured where, and what is refused."""

import pytest
import torch

from migm.runtime import compiling
from migm.runtime.compiling import PLAIN, Runtime, as_it_is, compiled, notice
from migm.runtime.errors import UserError

LARGE = 8_000_000_000
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def double(x):
    return 2 * x


@pytest.fixture
def tools(monkeypatch):
    """Compilers on every device, or what is lacking."""

    def set_(lacking):
        monkeypatch.setattr(compiling, "lacking_compiler", lambda device: lacking)

    set_("")
    return set_


@pytest.mark.parametrize(
    ("compile", "device", "size", "expected"),
    [
        ("auto", CPU, LARGE, False),
        ("auto", CUDA, LARGE, True),
        ("auto", CUDA, 6_000_000, False),
        (True, CPU, 6_000_000, True),
        (False, CUDA, LARGE, False),
    ],
)
def test_auto_compiles_on_cuda_what_is_not_tiny(tools, compile, device, size, expected):
    runtime = Runtime(compile=compile)
    assert runtime.compiles(device, size) is expected
    assert (runtime.fast(device, size)(double) is double) is not expected


def test_without_a_compiler_auto_runs_as_it_is_and_true_is_refused(tools):
    tools("no C compiler was found (CC names one)")
    assert Runtime().fast(CUDA, LARGE) is as_it_is
    with pytest.raises(UserError, match=r"runtime\.compile=true, but no C compiler was found .*choose auto or false"):
        Runtime(compile=True).fast(CUDA, LARGE)


def test_a_missing_compiler_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    lacking_compiler = compiling.lacking_compiler.__wrapped__  # without what was found on the usual path
    assert "no C compiler" in lacking_compiler(CPU)
    (tmp_path / "clang").touch(mode=0o755)
    assert lacking_compiler(CPU) == ""


def test_small_bases_on_cuda_are_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [Runtime().captures(CUDA, size) for size in (176_000_000, 8_000_000_000)] == [True, False]
    assert not Runtime().captures(CPU, 176_000_000)
    assert Runtime(cuda_graphs=True).captures(CUDA, 8_000_000_000)
    assert not PLAIN.captures(CUDA, 176_000_000)
    with pytest.raises(UserError, match=r"runtime\.cuda_graphs=true, but the base is on cpu"):
        Runtime(cuda_graphs=True).captures(CPU, 176_000_000)


def test_a_function_is_compiled_once():
    assert compiled(double) is compiled(double)


def test_commands_say_that_they_compile_and_where_the_code_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert str(tmp_path) in notice(compiled)
    assert notice(as_it_is) == ""
