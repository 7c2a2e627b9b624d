"""What every process of a test run does; the fixtures are loaded where tests run."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of numpy as well, and of every process that a test starts

# Files that take longest come first, so that none is left for one worker at the end.
LONGEST = [
    *("test_config.py", "test_methods.py", "test_commands.py", "test_inception_metrics.py", "test_door.py"),
    *("test_compiled_runs.py", "test_experiments.py", "test_checkpoints.py", "test_dimoo_chain.py", "test_cost.py"),
    *("test_tune.py", "test_sweeps.py", "test_ledger.py", "test_cuda_chain.py", "test_several_processes.py"),
    *("test_typed_commands.py", "test_kills.py"),  # of the slow ones
]


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Load the fixtures, before those of folders, unless this process deals tests out: imports take seconds."""
    chosen = pluginmanager.get_plugin("pytestconfig").known_args_namespace  # type: ignore[union-attr]
    if "PYTEST_XDIST_WORKER" in os.environ or not getattr(chosen, "numprocesses", None):
        pluginmanager.import_plugin("shared_fixtures")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)
