"""The notebooks run from top to bottom in an empty folder, and what is stored of their output is small and clean."""

import json
import re

import nbformat
import pytest
from conftest import PROJECT
from nbclient import NotebookClient

NOTEBOOKS = {path.stem: path for path in sorted((PROJECT / "docs" / "notebooks").glob("*.ipynb"))}
LARGEST = 100_000
"""Bytes of a notebook with its outputs."""


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_stored_was_run_in_order_and_is_small(name):
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum(bool(cell.outputs) for cell in code) >= 4
    assert NOTEBOOKS[name].stat().st_size <= LARGEST
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            shown = json.dumps({key: value for key, value in output.items() if key != "data"})
            shown += output.get("data", {}).get("text/plain", "")
            assert not re.search(r"(?<![\w.])/(tmp|home|root|work|Users)/", shown), "a path of the machine that ran it"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # asyncio's, of the client
@pytest.mark.parametrize(
    ("name", "shorter", "left"),
    [
        (
            "own_data",
            {'"iterations": 200': '"iterations": 8'},
            ["labels.png", "mine/classes.csv", "runs/mine/report.html", "val.json", "val_images.jsonl"],
        ),
        (
            "protocols",
            {'"iterations": 120': '"iterations": 8', "range(8)": "range(3)"},
            ["after.jsonl", "before.jsonl", "images.jsonl", "runs/scenes/best.safetensors"],
        ),
    ],
)
def test_a_notebook_runs(name, shorter, left, tmp_path, monkeypatch):
    """In a kernel of its own, which raises the first error of a cell; its files are there afterwards.

    Every cell runs. Only steps and images are fewer than a reader's, whose pictures are to show something.
    """
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))  # no kernel of the user's in place of this Python
    folder = tmp_path / "work"
    folder.mkdir()
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    for long, short in shorter.items():
        cells = [cell for cell in notebook.cells if cell.cell_type == "code" and long in cell.source]
        assert cells, long
        for cell in cells:
            cell.source = cell.source.replace(long, short)
    stored = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute()
    assert [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"] == stored
    assert [path for path in left if not (folder / path).is_file()] == []


def test_every_notebook_is_run():
    assert set(NOTEBOOKS) == {"own_data", "protocols"}
