"""Stored notebooks: outputs of the cells that are there, without errors, and small; `make notebooks` runs the cells."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from notebook_outputs import RAN, digest, is_told

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LARGEST = 400_000  # bytes, with pictures


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_those_of_the_cells(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert notebook.metadata[RAN] == digest(notebook), f"make notebook-outputs NOTEBOOKS={path.name}"
    assert all(cell.execution_count for cell in cells)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}  # no errors
    assert all(map(is_told, outputs))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_of_one_machine_is_stored(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < LARGEST
    assert not [word for word in ("/tmp/", "/home/", "/root/", "site-packages", "Traceback") if word in text]
    assert '"iopub.execute_input"' not in text
