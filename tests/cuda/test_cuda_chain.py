"""The whole chain on a pretended CUDA device gives what the CPU gives, to the bit."""

import chain
import pytest
from pretend_cuda import pretended

SLOW = [  # the paths of each are looked at one by one as well
    pytest.param("maskgit", ["loading"], marks=pytest.mark.slow),
    pytest.param("dimoo", ["compute"], marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "bench"), [("maskgit", ["compute"]), *SLOW])
def test_every_command_gives_on_cuda_what_it_gives_on_the_cpu(call_main, assets, tmp_path, monkeypatch, kind, bench):
    monkeypatch.setattr(
        "migm.benchmarks.compute.matmul_rate", lambda *_: 1e12
    )  # sized for a real card, it would take minutes
    wanted = chain.run(call_main, kind, "cpu", tmp_path / "cpu", assets)
    with pretended():
        found = chain.run(call_main, kind, "cuda", tmp_path / "cuda", assets, bench)
    chain.compare(found, wanted, rounding=False)
