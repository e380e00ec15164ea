"""What the commands print, for people and for programs, and how errors are told."""

import csv
import io
import json
import math
import os
import pickle
import statistics
import subprocess
import sys
from pathlib import Path
from shutil import copy, copytree

import click
import pandas as pd
import pytest
from click.testing import CliRunner
from kedro.io import Version
from omegaconf import OmegaConf
from PIL import Image
from pydantic import ValidationError

from counterdoor.catalogue import catalogue
from counterdoor.cli import ReadableError, _print_table, cli, message, readable
from counterdoor.config import ConfigError
from counterdoor.hardened import Hardened
from counterdoor.io import HardenedDataset
from counterdoor.models import DigitsCNN, TrainedNet, build_net
from counterdoor.names import markdown, original
from counterdoor.recipe import Recipe
from counterdoor.results import RESULTS
from counterdoor.sources.decoding import Form
from counterdoor.store import EXPERIMENT
from counterdoor.tracking import CHOICES

pytestmark = [
    pytest.mark.filterwarnings(
        # Kedro's own call of a function that OmegaConf 2.4 renamed.
        "ignore:register_new_resolver",
        # MLflow's tables use a loader that SQLAlchemy gives up.
        "ignore:The ``noload`` loader strategy is deprecated",
    ),
]

ROOT = Path(__file__).resolve().parents[1]
DEFAULTS = {
    "source_name": "digits",
    "attack_name": "badnets",
    "poison_ratio": "0.1",
    "label_mapping": "all_to_one",
    "model_name": "digits_cnn",
    "detector_name": "lga",
    "labeler_name": "vd",
    "defence_name": "nab",
}
EMPTY = "No evaluated run yet: `kedro run` makes one."


def figures(start):
    """A value in [0, 1] for every metric, no two alike."""
    return {metric: (start + number / 100) % 1 for number, metric in enumerate(RESULTS)}


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


class Store:
    """A tracking store with runs that never ran."""

    def __init__(self, path):
        from mlflow import MlflowClient

        self.uri = f"sqlite:///{path / 'mlflow.db'}"
        self.client = MlflowClient(self.uri)
        location = (path / "art facts").as_uri()
        self.experiment = self.client.create_experiment(EXPERIMENT, artifact_location=location)
        self.clock = 1_700_000_000_000

    def add(self, seed, metrics, variant="v", status="FINISHED", name="a run", **params):
        self.clock += 60_000
        run = self.client.create_run(
            self.experiment,
            start_time=self.clock,
            run_name=name,
            tags={"variant": variant},
        )
        for key, value in (DEFAULTS | {"seed": seed} | params).items():
            self.client.log_param(run.info.run_id, key, value)
        for key, value in metrics.items():
            self.client.log_metric(run.info.run_id, key, value)
        self.client.set_terminated(run.info.run_id, status)
        return run.info


@pytest.fixture
def store(tmp_path, empty_store, monkeypatch):
    copy(empty_store, tmp_path / "mlflow.db")
    made = Store(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.chdir(tmp_path)
    yield made
    import mlflow

    mlflow.set_tracking_uri(None)


def call(*arguments):
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def rows_of(text, form):
    """The rows of a printed table as dictionaries of texts."""
    if form == "json":
        return [{key: str(value) for key, value in row.items()} for row in json.loads(text)]
    if form == "csv":
        return list(csv.DictReader(io.StringIO(text)))
    header, rule, *lines = (line.strip().strip("|") for line in text.strip().splitlines())
    names = [cell.strip() for cell in header.split("|")]
    assert rule.replace("-", "").replace("|", "") == ""
    return [dict(zip(names, map(str.strip, line.split("|")), strict=True)) for line in lines]


# --- results -------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "csv", "markdown"])
def test_results_are_one_row_a_run_newest_first(store, form):
    runs = [store.add(seed, figures(seed / 10)) for seed in range(3)]
    rows = rows_of(call("results", "--format", form), form)
    assert [row["run_id"] for row in rows] == [run.run_id for run in reversed(runs)]
    assert [row["seed"] for row in rows] == ["2", "1", "0"]
    expected = ["run_id", "started", *(name.removesuffix("_name") for name in CHOICES), *RESULTS]
    assert list(rows[0]) == expected
    for seed, row in zip((2, 1, 0), rows, strict=True):
        assert row["attack"] == "badnets"
        assert float(row["poison_ratio"]) == 0.1
        assert row["started"].startswith("2023-11-14 22:")
        digits = 1e-3 if form == "markdown" else 1e-12
        for metric, value in figures(seed / 10).items():
            assert float(row[metric]) == pytest.approx(value, rel=digits), metric


def test_json_has_numbers_as_numbers(store):
    store.add(0, figures(0.3))
    (row,) = json.loads(call("results", "--format", "json"))
    assert row["seed"] == 0
    assert row["poison_ratio"] == 0.1
    assert row["ca"] == figures(0.3)["ca"]


def test_the_table_is_for_people(store):
    run = store.add(4, {"ca": 0.97531, "asr": 0.0125})
    text = call("results")
    assert "0.9753" in text
    assert "0.0125" in text
    assert run.run_id[:8] in text
    assert run.run_id not in text
    for column in ("run id", "attack", "poison ratio", "seed", "detection precision"):
        assert all(word in text for word in column.split()), column
    assert max(map(len, text.splitlines())) <= 250


@pytest.mark.parametrize("status", ["FAILED", "KILLED", "RUNNING"])
def test_runs_that_did_not_finish_are_left_out(store, status):
    store.add(0, figures(0.1))
    store.add(1, figures(0.2), status=status)
    (row,) = json.loads(call("results", "--format", "json"))
    assert row["seed"] == 0


def test_runs_without_evaluation_are_left_out(store):
    store.add(0, {"warmup/loss": 0.5})
    store.add(1, figures(0.2))
    (row,) = json.loads(call("results", "--format", "json"))
    assert row["seed"] == 1


def test_limit_and_filter(store):
    for seed in range(4):
        store.add(seed, figures(seed / 10), attack_name="blend" if seed % 2 else "badnets")

    def seeds(*arguments):
        return [row["seed"] for row in json.loads(call("results", "--format", "json", *arguments))]

    assert seeds() == [3, 2, 1, 0]
    assert seeds("--limit", "2") == [3, 2]
    assert seeds("--limit", "99") == [3, 2, 1, 0]
    assert seeds("--filter", "params.attack_name = 'blend'") == [3, 1]
    assert seeds("--filter", "metrics.ca > 0.15") == [3, 2]
    assert seeds("--filter", "params.attack_name = 'blend'", "--limit", "1") == [3]
    assert seeds("--filter", "params.seed = '17'") == []


def test_limit_counts_evaluated_runs(store):
    store.add(0, figures(0.1))
    store.add(1, {"warmup/loss": 0.5})
    (row,) = json.loads(call("results", "--format", "json", "--limit", "1"))
    assert row["seed"] == 0


@pytest.mark.parametrize("limit", ["0", "-1", "many"])
def test_a_bad_limit_is_refused(store, limit):
    result = CliRunner().invoke(cli, ["results", "--limit", limit])
    assert result.exit_code == 2
    assert "--limit" in result.stderr


@pytest.mark.parametrize("where", ["nonsense", "params.seed == 0", "what.ever = '1'", "ca > "])
def test_a_bad_filter_is_told_in_words(store, where):
    store.add(0, figures(0.1))
    result = CliRunner().invoke(cli, ["results", "--filter", where])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: MLflow does not understand --filter {where!r}: ")
    assert "Traceback" not in result.stderr


def test_columns(store):
    store.add(3, figures(0.1))
    text = call("results", "--format", "csv", "--columns", "seed, asr")
    assert rows_of(text, "csv") == [{"seed": "3", "asr": str(figures(0.1)["asr"])}]
    result = CliRunner().invoke(cli, ["results", "--columns", "seed,asrr"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: no column asrr; there are run_id, started, source")


@pytest.mark.parametrize("arguments", [(), ("--last",), ("--summary",), ("--limit", "3")])
def test_an_empty_store(store, arguments):
    assert EMPTY in call("results", *arguments)
    assert json.loads(call("results", "--format", "json", *arguments)) == []
    assert len(call("results", "--format", "csv", *arguments).splitlines()) == 1
    assert len(call("results", "--format", "markdown", *arguments).splitlines()) == 2


def test_a_store_that_does_not_exist_yet(tmp_path, store, monkeypatch):
    """The first command of all is ``results``: an empty table, not an error."""
    (tmp_path / "fresh").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'fresh' / 'new.db'}")
    assert EMPTY in call("results")


def test_last_puts_both_nets_side_by_side(store):
    store.add(0, figures(0.5))
    store.add(
        1,
        figures(0.1)
        | {
            "ca": 0.987,
            "asr": 0.0321,
            "ba": 0.9123,
            "undefended_ca": 0.991,
            "undefended_asr": 0.9987,
            "undefended_ba": 0.1234,
            "detection_precision": 0.8766,
            "pseudo_label_accuracy": 0.7654,
            "seconds": 61.7,
        },
        name="the newest run",
    )
    lines = call("results", "--last").splitlines()
    assert "the newest run" in lines[0]

    def line(word):
        (found,) = [line for line in lines if word in line]
        return found

    for word, undefended, defended in (
        ("(CA)", "99.1%", "98.7%"),
        ("(ASR)", "99.9%", "3.2%"),
        ("(BA)", "12.3%", "91.2%"),
    ):
        cells = [cell.strip() for cell in line(word).split("│")]
        assert cells[2:4] == [undefended, defended]
    assert "suspects that are poisoned: 87.7%" in line("suspects")
    assert "pseudo-labels right: 76.5%" in line("pseudo-labels")
    assert "seconds: 62" in line("seconds")


def test_what_a_run_without_attack_has_not_is_not_available(store):
    gone = {"asr", "ba", "undefended_asr", "undefended_ba", "der", "detection_precision"}
    kept = {name: value for name, value in figures(0.5).items() if name not in gone}
    store.add(0, kept | {"ca": 0.987, "undefended_ca": 0.991}, attack_name="none", poison_ratio="0")
    text = call("results", "--last")
    (line,) = [line for line in text.splitlines() if "(ASR)" in line]
    assert [cell.strip() for cell in line.split("│")][2:4] == ["n/a", "n/a"]
    assert "suspects that are poisoned" not in text
    (row,) = json.loads(call("results", "--format", "json"))
    assert (row["asr"], row["ca"], row["poison_ratio"]) == (None, 0.987, 0)
    for form in ("table", "markdown"):
        assert "n/a" in call("results", "--format", form)
        assert "nan" not in call("results", "--format", form)
    (row,) = rows_of(call("results", "--summary", "--format", "csv"), "csv")
    assert (row["asr"], row["ca"]) == ("n/a", "98.7%")


def test_rates_that_a_defence_has_not_are_left_out(store):
    """A run that detects and labels nothing has no such metric."""
    told = figures(0.1)
    for name in ("detection_precision", "pseudo_label_accuracy"):
        del told[name]
    store.add(0, told, defence_name="fp")
    shown = call("results", "--last")
    assert "nan" not in shown
    assert "suspects" not in shown
    assert "seconds: " in shown
    (row,) = json.loads(call("results", "--summary", "--format", "json"))
    assert row["defence"] == "fp"
    assert row["detection_precision"] == "n/a"


def test_last_in_other_formats_is_the_newest_row(store):
    for seed in range(2):
        store.add(seed, figures(0.1))
    (row,) = json.loads(call("results", "--last", "--format", "json"))
    assert row["seed"] == 1


def test_last_names_a_report_that_is_there(store):
    """Also where the folder's name has a blank, which MLflow keeps encoded."""
    run = store.add(0, figures(0.1))
    report = Path(store.uri.removeprefix("sqlite:///")).parent / "art facts" / run.run_id
    (report / "artifacts").mkdir(parents=True)
    (report / "artifacts" / "report.html").write_text("x")
    (line,) = [line for line in call("results", "--last").splitlines() if "report.html" in line]
    assert Path(line.split("report ", 1)[1].strip()).exists(), line


def spread(values):
    """Mean and sample deviation in percent, by hand."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{100 * mean:.1f}%"
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    assert deviation == pytest.approx(statistics.stdev(values))
    return f"{100 * mean:.1f} ± {100 * deviation:.1f}%"


def test_summary_is_mean_and_deviation_over_seeds(store):
    ca, asr, seconds = (0.91, 0.955, 0.97), (0.02, 0.1, 0.3), (50.0, 61.0, 72.0)
    for seed in range(3):
        store.add(seed, {"ca": ca[seed], "asr": asr[seed], "seconds": seconds[seed]}, "one")
    store.add(0, {"ca": 0.5, "asr": 0.25, "seconds": 9.0}, "two", attack_name="blend")
    blend, badnets = rows_of(call("results", "--summary", "--format", "csv"), "csv")
    assert (badnets["attack"], badnets["n"]) == ("badnets", "3")
    assert badnets["ca"] == spread(ca) == "94.5 ± 3.1%"
    assert badnets["asr"] == spread(asr)
    assert badnets["seconds"] == "61 ± 11"
    assert (blend["attack"], blend["n"]) == ("blend", "1")
    assert blend["ca"] == "50.0%"
    assert blend["asr"] == "25.0%"
    assert blend["seconds"] == "9"
    assert "seed" not in badnets


def test_summary_counts_a_seed_once_the_newest(store):
    store.add(0, {"ca": 0.1}, "one")
    store.add(1, {"ca": 0.6}, "one")
    store.add(0, {"ca": 0.8}, "one")
    (row,) = rows_of(call("results", "--summary", "--format", "csv"), "csv")
    assert row["n"] == "2"
    assert row["ca"] == spread((0.8, 0.6))


def test_summary_tells_what_variants_of_the_same_choices_differ_in(store):
    for variant, stamps, epochs in (("one", 1, 20), ("two", 0, 20)):
        for seed in range(2):
            params = {"relabel.trusted_stamps": stamps, "train.recipe.epochs": epochs}
            store.add(seed, figures(0.1), variant, **params)
    store.add(0, figures(0.1), "three", attack_name="blend", **{"train.recipe.epochs": 9})
    rows = rows_of(call("results", "--summary", "--format", "csv"), "csv")
    badnets = {row["differs_in"]: row["n"] for row in rows if row["attack"] == "badnets"}
    assert badnets == {"relabel.trusted_stamps=1": "2", "relabel.trusted_stamps=0": "2"}


@pytest.mark.parametrize("form", ["table", "json", "csv", "markdown"])
def test_summary_in_every_format(store, form):
    for seed, ca in enumerate((0.4, 0.6)):
        store.add(seed, {"ca": ca})
    text = call("results", "--summary", "--format", form)
    if form == "json":
        (row,) = json.loads(text)
        assert row["ca"] == "50.0 ± 14.1%"
        assert row["n"] == 2
    else:
        assert "50.0 ± 14.1%" in text


# --- components ------------------------------------------------------------------


def test_components_as_json_are_the_catalogue():
    assert json.loads(call("components", "--format", "json")) == catalogue()


@pytest.mark.parametrize("form", ["csv", "markdown"])
def test_components_are_one_row_each(form):
    rows = rows_of(call("components", "--format", form), form)
    expected = [
        (family, part["name"], markdown(part["summary"]) if form == "markdown" else part["summary"])
        for family, parts in catalogue().items()
        for part in parts
    ]
    assert [(row["family"], row["name"], row["what it is"]) for row in rows] == expected
    badnets = next(row for row in rows if row["name"] == "badnets")
    assert "labels={'name': 'all_to_one', 'target_class': 0}" in badnets["parameters"]
    assert "poison_ratio=0.1" in badnets["parameters"]


def test_a_required_parameter_is_shown_without_a_default():
    rows = rows_of(call("components", "--format", "csv"), "csv")
    (shown,) = [row for row in rows if row["name"] == "image_folder"]
    assert "path" in [each.strip() for each in shown["parameters"].split(",")]
    assert "path=" not in shown["parameters"]


def test_components_as_table(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    text = call("components")
    for parts in catalogue().values():
        for part in parts:
            assert part["name"] in text


def test_an_unknown_format_is_refused():
    for command in ("components", "results"):
        result = CliRunner().invoke(cli, [command, "--format", "xml"])
        assert result.exit_code == 2
        assert "'table', 'json', 'csv', 'markdown'" in result.stderr


# --- attacks-page -----------------------------------------------------------------


@pytest.mark.slow
def test_the_attacks_page_lies_beside_its_pictures(tmp_path, parquet_writer, noise):
    images = noise(40, 3, 24, 24)
    parquet_writer(tmp_path / "train.parquet", images, [i % 4 for i in range(40)])
    out = tmp_path / "docs" / "attacks.md"
    arguments = ["--images", str(tmp_path), "--out", str(out), "--limit", "40"]
    measured = {"data": "noise", "n_train": 40, "n_test": 4, "model": {"name": "compact"}}
    measured |= {"recipe": {"epochs": 1}, "ca_clean": 0.5, "ca": 0.5, "asr": 1.0, "seed": 0}
    measured |= {"hardware": "a machine", "commit": "0123abcd"}
    for name in ("badnets", "wanet"):  # records of two places on one page
        file = tmp_path / f"{name}.jsonl"
        file.write_text(json.dumps(measured | {"attack": {"name": name}}) + "\n")
        arguments += ["--records", str(file)]
    text = call("attacks-page", *arguments)
    names = [part["name"] for part in catalogue()["attacks"] if part["name"] != "none"]
    assert f"{len(names)} attacks, 2 measurements" in text
    page = out.read_text(encoding="utf-8")
    assert str(tmp_path) not in page
    assert "--limit 40 --records badnets.jsonl --records wanet.jsonl" in page
    for name in names:
        assert f"](attacks/{name}.png)" in page
        assert (out.parent / "attacks" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert page.count("Strength: not measured.") == len(names) - 2


def test_the_attacks_page_refuses_an_unknown_source_and_a_damaged_record(tmp_path):
    result = CliRunner().invoke(cli, ["attacks-page", "--images", "nowhere"])
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "Error: --images: unknown name 'nowhere'. Valid names: cifar10,"
    )
    records = tmp_path / "records.jsonl"
    records.write_text("{}\n")
    arguments = ["attacks-page", "--images", "digits", "--records", str(records)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1
    assert "line 1 is no record" in result.stderr


# --- errors ----------------------------------------------------------------------


def test_message_drops_what_the_configuration_library_adds():
    def refuse():
        raise ConfigError("unknown thing 'x'. Valid names: a, b")

    OmegaConf.register_resolver("refuse_for_test", refuse, replace=True)
    config = OmegaConf.create({"a": {"b": "${refuse_for_test:}"}})
    with pytest.raises(Exception, match="unknown thing") as caught:
        OmegaConf.to_container(config, resolve=True)
    OmegaConf.clear_resolver("refuse_for_test")
    assert "full_key" in str(caught.value)
    assert message(caught.value) == "unknown thing 'x'. Valid names: a, b"


def test_the_validators_message_is_one_line():
    with pytest.raises(ValidationError) as caught:
        Recipe(epochs=0, epoch=3)
    assert message(caught.value) == (
        "Recipe: epochs is 0; Input should be greater than or equal to 1"
    )


@pytest.mark.parametrize("text", ["plain", "two\nlines", "", "ä – ü"])
def test_message_leaves_other_texts_alone(text):
    assert message(ValueError(text)) == text


def test_readable_tells_expected_errors_in_words():
    @readable
    def fails():
        raise ValueError("lower it")

    with pytest.raises(ReadableError) as caught:
        fails()
    assert caught.value.message == "lower it"
    assert isinstance(caught.value.__cause__, ValueError)
    assert isinstance(caught.value, click.ClickException)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("error", [KeyError("a"), TypeError("b"), RuntimeError("c"), OSError("d")])
def test_readable_hides_no_bug_of_ours(error):
    @readable
    def fails():
        raise error

    with pytest.raises(type(error)) as caught:
        fails()
    assert caught.value is error


def test_readable_gives_results_and_names_through():
    @readable
    def adds(one, *, other):
        """Doc."""
        return one + other

    assert adds(1, other=2) == 3
    assert (adds.__name__, adds.__doc__) == ("adds", "Doc.")


def test_the_traceback_is_shown_on_request(capsys, monkeypatch):
    try:
        raise ReadableError("in words") from ValueError("the cause")
    except ReadableError as error:
        error.show()
        brief = capsys.readouterr().err
        monkeypatch.setattr("kedro.framework.cli.utils.KedroCliError.VERBOSE_ERROR", True)
        error.show()
        long = capsys.readouterr().err
    assert brief == "Error: in words\n"
    assert "ValueError: the cause" in long
    assert long.endswith("Error: in words\n")


WRONG = {
    "misspelt parameter": (
        ["run", "--params", "poisson_ratio=0.3"],
        "unknown parameter 'poisson_ratio'; did you mean 'poison_ratio'?",
    ),
    "bad value": (
        ["run", "--pipelines", "ingest", "--params", "train.recipe.epochs=0"],  # not read there
        "train.recipe.epochs is 0; it must be a whole number from 1 to 1000000",
    ),
    "more than the machine has": (
        ["run", "--params", "engine.devices=1000"],
        "engine.devices is 1000, but this machine has",
    ),
    "no path": (
        ["run", "--pipelines", "defend", "--dry-run", "--params", "source_path="],
        "source_path is ''; it must be the path of a folder or file",
    ),
    "no name=value": (["table", "grid.yml", "--params", "seed"], "--params has 'seed', which is"),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What ``kedro run`` says to each wrong command; all are asked at once."""
    path = tmp_path_factory.mktemp("wrong") / "project"
    (path / "src").mkdir(parents=True)
    (path / "src" / "counterdoor").symlink_to(ROOT / "src" / "counterdoor")
    copytree(ROOT / "conf" / "base", path / "conf" / "base")
    (path / "conf" / "local").mkdir()
    copy(ROOT / "pyproject.toml", path)
    (path / "grid.yml").touch()
    environment = {name: value for name, value in os.environ.items() if "MLFLOW" not in name}
    environment |= {"OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "1"}
    started = {
        name: subprocess.Popen(
            [sys.executable, "-m", "kedro", *arguments],
            cwd=path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, (arguments, _) in WRONG.items()
    }
    outputs = {name: process.communicate() for name, process in started.items()}
    codes = {name: process.returncode for name, process in started.items()}
    return {name: (codes[name], *outputs[name]) for name in WRONG}, path


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_an_error_of_the_users_is_told_in_words(answers, name):
    code, out, err = answers[0][name]
    assert code == 1
    assert WRONG[name][1] in err
    assert "Traceback" not in out + err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1, err


@pytest.mark.slow
def test_a_refused_run_leaves_nothing_behind(answers):
    path = answers[1]
    assert {each.name for each in path.iterdir()} == {"conf", "grid.yml", "pyproject.toml", "src"}


PICTURES = "source_name=image_folder,source_path=no such #1: a, b"
FROM_BELOW = {
    "run": ["run", "--pipelines", "ingest", "--params", PICTURES],
    "dry run": ["run", "--pipelines", "defend", "--dry-run", "--params", PICTURES],
    "attacks page": ["attacks-page", "--images", "tiny_imagenet"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FROM_BELOW)
def test_a_relative_path_of_a_parameter_lies_in_the_project(answers, tmp_path, name):
    """Also where a command is given in a folder below it, and with all that is in the path."""
    path = tmp_path / "project"
    copytree(answers[1], path, symlinks=True)
    (path / "below").mkdir()
    environment = os.environ | {"DO_NOT_TRACK": "1", "MLFLOW_TRACKING_URI": "sqlite:///:memory:"}
    done = subprocess.run(
        [sys.executable, "-m", "kedro", *FROM_BELOW[name]],
        cwd=path / "below",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    tiny = path / "data/00_external/tiny-imagenet-200"
    expected = tiny if name == "attacks page" else path / "no such #1: a, b"
    assert str(expected) in "".join(done.stderr.splitlines())


# --- short names, and data of unknown origin -------------------------------------------


# --- predict with a file of a stranger ---------------------------------------------


@pytest.fixture
def offered(tmp_path, noise):
    """An image, and a file with a net whose weights are multiplied by a factor."""

    def make(factor=1.0):
        model = DigitsCNN(width=3, hidden=5)
        state = build_net(model, noise(9), 2, seed=0, stream="x").state_dict()
        body = {name: each * factor for name, each in state.items() if name.endswith("weight")}
        trained = TrainedNet.of(model, noise(9), 2, state | body)
        file = tmp_path / "offered.safetensors"
        HardenedDataset(filepath=str(file)).save(
            Hardened(trained, ("cat", "dog"), Form((12, 12), "L"))
        )
        Image.fromarray(noise(1)[0, 0]).save(tmp_path / "image.png")
        return ["predict", str(tmp_path / "image.png"), "--model", str(file)], file

    return make


def test_predict_answers_with_a_good_file(offered):
    command, _ = offered()
    result = CliRunner().invoke(cli, [*command, "--format", "json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["label"] in ("cat", "dog")


@pytest.mark.parametrize(
    ("put", "reason"),
    [
        (lambda file: None, "there is no such file"),
        (lambda file: file.mkdir(), "it is a folder, not a file"),
        (os.mkfifo, "it is a pipe, not a file"),
        (lambda file: file.symlink_to("/dev/zero"), "it is a device, not a file"),
        (lambda file: file.write_bytes(pickle.dumps([1])), "it is no safetensors file"),
        (lambda file: file.write_text("hello " * 10), "it is no safetensors file"),
    ],
    ids=["nothing", "folder", "pipe", "device", "pickle", "text"],
)
def test_predict_refuses_what_is_no_model_file_in_a_line(offered, put, reason):
    command, file = offered()
    file.unlink()
    put(file)
    check_refused_in_a_line(command, f"{file} cannot be used as a net: {reason}")


def test_predict_gives_no_label_where_there_is_none(offered):
    command, file = offered(factor=1e30)
    check_refused_in_a_line(command, f"{file} cannot be used as a net: its net gives logits")


def check_refused_in_a_line(command, told):
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {told}")
    assert "Take a file as `kedro run" in line


ODD = ["[bold]x[/nothing]", ":smile:", "=1+1", r"\x1b[31m", "a|b", "two\nlines", "-1"]


@pytest.mark.parametrize("form", ["table", "csv", "markdown", "json"])
def test_text_in_a_table_is_text(form, capsys):
    _print_table(pd.DataFrame({"file": ODD, "label": ODD, "n": range(len(ODD))}), form)
    told = capsys.readouterr().out
    if form == "json":
        assert [row["label"] for row in json.loads(told)] == ODD
    elif form == "csv":
        rows = list(csv.DictReader(io.StringIO(told, newline="")))
        assert [os.path.normpath(row["file"]) for row in rows] == ODD
        assert [row["label"] for row in rows] == [*ODD[:2], "'=1+1", *ODD[3:]]
    else:
        assert "\x1b" not in told
        assert "smile" in told
        assert "nothing" in told
        assert len(told.splitlines()) == len(ODD) + (2 if form == "markdown" else 4)


def test_predict_takes_any_name_and_one_odd_file_leaves_the_others(digits, tmp_path):
    model = DigitsCNN(width=2, hidden=4)
    net = build_net(model, digits.images_nchw, 2, seed=0, stream="x").state_dict()
    trained = TrainedNet.of(model, digits.images_nchw, 2, net, None)
    hardened = Hardened(trained, ("=1+1", "[red]"), Form((28, 28), "L"))
    HardenedDataset(filepath=str(tmp_path / "net.safetensors")).save(hardened)
    folder, empty = tmp_path / "images", tmp_path / "empty"
    folder.mkdir()
    empty.mkdir()
    names = [b"\xff.png", b"[bold]\n.png", b"=1.png"]
    for name, image in zip(names, digits.images_nchw, strict=False):
        Image.fromarray(image[0]).save(folder / os.fsdecode(name))
    (folder / "broken\x1b.png").write_bytes(b"no image")
    (folder / "out.png").symlink_to("/etc/hostname")
    for form in ("json", "csv", "table", "markdown"):
        given = [str(empty), str(folder), "--model", str(tmp_path / "net.safetensors")]
        result = CliRunner().invoke(cli, ["predict", *given, "--format", form])
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)
        for told in (
            f"{empty} cannot be read: there is no file in it",
            r"broken\x1b.png cannot be read: it is no image",
            "out.png cannot be read: it is a link that leads out of the folder",
        ):
            assert told in result.stderr
        if form in ("json", "csv"):
            rows = rows_of(result.stdout, form)
            found = {os.fsencode(Path(original(row["file"])).name) for row in rows}
            assert found == set(names)
            assert {row["label"] for row in rows} <= {"=1+1", "'=1+1", "[red]"}


def test_predict_takes_the_net_that_was_saved_last_and_verifies_it(tmp_path, noise, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    images = noise(4)
    model = DigitsCNN(width=2, hidden=4)
    state = build_net(model, images, 2, seed=0, stream="x").state_dict()
    files = []
    for second, variant in ((1, "b"), (2, "a")):
        path = tmp_path / "data" / "06_models" / variant / "s0" / "hardened.safetensors"
        version = f"2024-01-01T00.00.0{second}.000Z"
        names = (f"{variant}0", f"{variant}1")
        net = TrainedNet.of(model, images, 2, state, None)
        hardened = Hardened(net, names, Form((12, 12), "L"))
        HardenedDataset(filepath=str(path), version=Version(None, version)).save(hardened)
        files.append(path / version / path.name)
    stray = files[1].parents[1] / "zoo" / files[1].name
    stray.parent.mkdir()
    copy(files[0], stray)
    Image.fromarray(images[0, 0]).save(tmp_path / "x.png")
    told = CliRunner().invoke(cli, ["predict", "x.png", "--format", "json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)[0]["label"] in ("a0", "a1")
    content = bytearray(files[1].read_bytes())
    content[-1] ^= 1
    files[1].write_bytes(content)
    told = CliRunner().invoke(cli, ["predict", "x.png", "--format", "json"])
    assert told.exit_code == 1
    assert f"{files[1]} cannot be read: its SHA-256 is not that of what was saved" in told.stderr
    named = CliRunner().invoke(cli, ["predict", "x.png", "--model", str(stray)])
    assert named.exit_code == 0, named.output
