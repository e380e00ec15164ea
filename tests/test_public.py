"""The public surface: what ``__all__`` names is there, and the library stands alone."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import counterdoor

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(counterdoor.__path__, "counterdoor.")
    if not module.name.endswith("__main__")
)
WITH_KEDRO = (
    "cells",
    "cli",
    "comparison_page",
    "config",
    "given",
    "hooks",
    "io",
    "origins",
    "pipeline_registry",
    "settings",
    "results",
    "store",
    "table",
    "tracking",
)
LIBRARY = [
    name
    for name in MODULES
    if name.split(".")[1] not in WITH_KEDRO
    and (name.split(".")[1] != "pipelines" or name.endswith((".nodes", ".timing")))
]


@pytest.mark.parametrize("name", MODULES)
def test_all_names_exist(name):
    module = importlib.import_module(name)
    missing = [each for each in getattr(module, "__all__", ()) if not hasattr(module, each)]
    assert not missing


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is(name):
    assert (importlib.import_module(name).__doc__ or "").strip()


def test_the_library_imports_without_kedro_and_mlflow():
    """Nodes are below packages whose ``__init__`` is wiring, so they are left out here."""
    alone = [name for name in LIBRARY if ".pipelines." not in name]
    assert "counterdoor.training" in alone
    code = (
        "import sys\n"
        "for name in ('kedro', 'kedro_datasets', 'kedro_viz', 'mlflow'):\n"
        "    sys.modules[name] = None\n"
        "import importlib\n"
        f"for name in {alone!r}:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_telemetry_is_off():
    import os

    assert os.environ["DO_NOT_TRACK"]


@pytest.mark.parametrize("wish", [None, "", "1", "true", "True", "TRUE", "yes", "on", " 1 "])
def test_every_yes_to_no_tracking_is_one_that_mlflow_understands(wish):
    assert counterdoor._no_tracking(wish) == "true"


@pytest.mark.parametrize("wish", ["0", "false", "No", "off"])
def test_who_wants_to_be_tracked_is(wish):
    assert counterdoor._no_tracking(wish) == wish


@pytest.mark.slow
def test_mlflow_and_kedro_telemetry_heed_the_one_that_people_write(tmp_path):
    import os

    code = (
        "import counterdoor\n"
        "from mlflow.telemetry.utils import is_telemetry_disabled\n"
        "from kedro_telemetry.plugin import _check_for_telemetry_consent\n"
        "from pathlib import Path\n"
        "print(is_telemetry_disabled(), _check_for_telemetry_consent(Path.cwd()))\n"
    )
    surroundings = ("DO_NOT_TRACK", "CI", "GITHUB_ACTIONS", "PYTEST_CURRENT_TEST")
    environment = {name: value for name, value in os.environ.items() if name not in surroundings}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment | {"DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1].split() == ["True", "False"], done.stderr
