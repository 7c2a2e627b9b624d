"""The notebook runs from top to bottom, as it is."""

import nbformat
import pytest
from nbclient import NotebookClient
from tiny_parts import ROOT

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def test_the_notebook_is_kept_without_outputs():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert any("migm.train_shortcut" in cell.source for cell in cells)
    assert all(not cell.get("outputs") for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    kinds = {kind for cell in notebook.cells for out in cell.get("outputs", ()) for kind in out.get("data", {})}
    assert {"image/png", "text/markdown"} <= kinds
    assert (tmp_path / "quickstart" / "shortcut.safetensors").exists()
