"""The notebook from a folder to a verdict runs as it is, and the verdict is right."""

import json
from pathlib import Path
from shutil import copy, copytree

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_a_poisoned_folder_is_found_out_and_the_net_is_hardened(tmp_path, monkeypatch):
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "counterdoor").symlink_to(ROOT / "src" / "counterdoor")
    copytree(ROOT / "conf" / "base", tmp_path / "conf" / "base")
    copy(ROOT / "conf" / "logging.yml", tmp_path / "conf")
    copy(ROOT / "pyproject.toml", tmp_path)
    for name in ("conf/local", "data"):
        (tmp_path / name).mkdir()
    notebook = nbformat.read(ROOT / "notebooks" / "your_own_data.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    told = "print(json.dumps([code, verdict, suspects['file'].tolist(), result.to_dict()]))"
    notebook.cells.append(nbformat.v4.new_code_cell(told))
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=400, kernel_name="python3", resources=resources).execute()
    printed = "".join(output.get("text", "") for output in notebook.cells[-1]["outputs"])
    code, verdict, files, result = json.loads(printed)
    assert (code, verdict["answer"]) == (3, "evidence")
    assert verdict["suspects"] == len(files)
    assert len(files) > 100
    assert all(file.startswith("train/0/") for file in files)
    assert result["accuracy"] > 0.9
    assert result["taken for the target"] < 0.1
