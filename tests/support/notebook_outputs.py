"""Run notebooks and store what they print and draw: ``python tests/support/notebook_outputs.py FILE ...``.

What differs from machine to machine and from run to run does not go in: times, progress bars, folders. Of what was run
a digest is kept, by which tests/test_notebooks.py knows outputs of other cells.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

RAN = "outputs_of"  # in the notebook's metadata: the digest of the cells that were run
_TEMPORARY = re.compile(r"(?:/[\w.-]+)*/layerdrop-\w+")  # what mkdtemp made
_SPEED = re.compile(r"'train_(?:runtime|samples_per_second|steps_per_second)': '[^']*', ")
_DURATION = re.compile(r"(\[\d+/\d+) [\d:]+(, Epoch)")  # in the progress of a Trainer


def digest(notebook: Any) -> str:
    """Tell the code of a notebook."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:16]


def run(path: Path) -> None:
    """Run one notebook, in its folder, and store it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=None, record_timing=False, resources={"metadata": {"path": path.parent}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [cleaned(output) for output in cell.outputs if is_told(output)]
    notebook.metadata[RAN] = digest(notebook)
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, path)


def is_told(output: Any) -> bool:
    """Leave out progress bars and warnings: they are not what the notebook is about."""
    widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return not widget and output.get("name") != "stderr"


def cleaned(output: Any) -> Any:
    """Return an output without the times and the folders of one run, and pictures as small as they can be."""
    if "text" in output:
        output.text = _clean(output.text)
    for kind, content in output.get("data", {}).items():
        if isinstance(content, str):
            output.data[kind] = _smaller(content) if kind == "image/png" else _clean(content)
    return output


def _smaller(png: str) -> str:
    """Return a picture at most 800 pixels wide, of few colours: it is a plot."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.thumbnail((800, 2000))
    file = io.BytesIO()
    picture.quantize(48).save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _clean(text: str) -> str:
    return _SPEED.sub("", _DURATION.sub(r"\1\2", _TEMPORARY.sub("layerdrop", text)))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run(Path(name))
