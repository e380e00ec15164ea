"""The quick-start notebook runs as it is and ends with the defence at work."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "quickstart.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_quickstart_runs_and_the_backdoor_is_off(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    check = nbformat.v4.new_code_cell("print(result.to_json())")
    notebook.cells.append(check)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=400, kernel_name="python3", resources=resources).execute()
    printed = "".join(output.get("text", "") for output in notebook.cells[-1]["outputs"])
    import json

    result = json.loads(printed)
    assert result["undefended"]["ASR"] > 0.9
    assert result["defended"]["ASR"] < 0.1
    assert result["defended"]["CA"] > 0.9
    figures = sum(
        "image/png" in output.get("data", {})
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    assert figures == 3
