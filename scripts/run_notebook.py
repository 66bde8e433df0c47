"""Execute a notebook of the documentation and write it with its outputs, without progress bars.

Run: python scripts/run_notebook.py docs/notebooks/first-steps.ipynb
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient


def execute(path: Path) -> Any:
    """Return the notebook with the outputs of a new run in an empty folder; an error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": folder}}).execute()
    return notebook


def remove_noise(notebook: Any) -> None:
    """Remove what differs from run to run: progress on stderr, times, the version of Python."""
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


if __name__ == "__main__":
    notebook = execute(Path(sys.argv[1]))
    remove_noise(notebook)
    nbformat.write(notebook, sys.argv[1])
