"""Progress bars and checkpoint folders; the preflight is tested with whole projects."""

import logging
from types import SimpleNamespace

import pytest
from kedro.io import DataCatalog, DatasetError, MemoryDataset, Version
from kedro.pipeline import Pipeline, node, pipeline

from counterdoor.checkpoint import Checkpoint, SharedResult
from counterdoor.config import STAGES
from counterdoor.detectors import LGA, Ensemble, Oracle
from counterdoor.engine import Engine
from counterdoor.hooks import (
    LIBRARY_LOGGER,
    READING_LOGGER,
    SHARED_RESULTS,
    CheckpointHooks,
    PathHooks,
    PreflightHooks,
    ProgressHooks,
    ensure_choices_agree,
    ensure_nothing_is_known,
    ensure_readable,
    ensure_truth_is_given,
    needed,
)
from counterdoor.io import TextDataset
from counterdoor.labelers import Drop
from counterdoor.labelers import Oracle as TrueLabels
from counterdoor.params import AttackParams, IngestParams
from counterdoor.pipelines import defend, detect, ingest, relabel, selftest, warmup
from counterdoor.sources import decoding

PROGRESS = {
    "stream": "warmup",
    "epoch": 2,
    "epochs": 10,
    "done": 150,
    "total": 1000,
    "loss": 0.5,
    "rate": 4321.0,
}


def test_bars_show_epoch_loss_and_rate_on_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: True, write=len, flush=int))
    monkeypatch.setenv("TERM", "xterm")
    training, reading = logging.getLogger(LIBRARY_LOGGER), logging.getLogger(READING_LOGGER)
    before = [(each.level, each.propagate, list(each.handlers)) for each in (training, reading)]
    hooks = ProgressHooks()
    hooks.before_node_run(node=None)
    try:
        assert training.isEnabledFor(logging.DEBUG)
        training.debug("within an epoch", extra={"progress": PROGRESS})
        training.debug("something else")
        (task,) = hooks._handler._progress.tasks
        assert (task.completed, task.total) == (150, 1000)
        text = "".join(
            column.render(task).plain
            for column in hooks._handler._progress.columns
            if hasattr(column, "text_format")
        )
        assert "warmup" in text
        assert "epoch 2/10" in text
        assert "loss 0.500" in text
        assert "4,321 images/s" in text
        state = {"stream": "reading", "done": 70, "total": 90, "rate": 1234.5}
        reading.debug("read 70 of 90", extra={"progress": state})
        _, task = hooks._handler._progress.tasks
        assert (task.description, task.completed, task.total) == ("reading", 70, 90)
        assert task.fields["detail"] == "1,234 images/s"
    finally:
        hooks.after_node_run(node=None)
    after = [(each.level, each.propagate, list(each.handlers)) for each in (training, reading)]
    assert after == before


def test_the_reading_tells_the_logger_that_the_bars_listen_to():
    assert decoding.progress.name == READING_LOGGER


@pytest.mark.parametrize(("terminal", "term"), [(False, "xterm"), (True, "dumb")])
def test_no_bars_elsewhere(terminal, term, monkeypatch):
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: terminal))
    monkeypatch.setenv("TERM", term)
    hooks = ProgressHooks()
    hooks.before_node_run(node=None)
    assert hooks._handler is None


def ingest_params(**source):
    return IngestParams(source=source, test_share=0.2, trusted_share=0.05)


def test_a_relative_path_is_one_within_the_project(tmp_path):
    hooks = PathHooks()
    hooks.after_context_created(SimpleNamespace(project_path=tmp_path))
    given = ingest_params(name="image_folder", path="data/images", image_size=8)
    told = hooks.before_node_run({"params:ingest": given, "params:seed": 0})
    assert set(told) == {"params:ingest"}
    assert told["params:ingest"].source.path == str(tmp_path / "data" / "images")
    assert told["params:ingest"].source.image_size == 8
    assert given.source.path == "data/images"
    assert told["params:ingest"].test_share == 0.2
    assert told["params:ingest"].trusted_path is None
    more = given.model_copy(update={"trusted_path": "data/verified"})
    told = hooks.before_node_run({"params:ingest": more})["params:ingest"]
    assert told.trusted_path == str(tmp_path / "data" / "verified")
    assert told.source.path == str(tmp_path / "data" / "images")


def test_so_is_that_of_an_attackers_file(tmp_path):
    hooks = PathHooks()
    hooks.after_context_created(SimpleNamespace(project_path=tmp_path))
    given = AttackParams.model_validate({"name": "blend", "pattern": "cat.png"})
    told = hooks.before_node_run({"params:attack": given, "params:engine": Engine()})
    assert set(told) == {"params:attack"}
    assert told["params:attack"].root.pattern == str(tmp_path / "cat.png")
    assert given.root.pattern == "cat.png"


def test_a_folder_may_be_called_like_nobodys_home(tmp_path):
    hooks = PathHooks()
    hooks.after_context_created(SimpleNamespace(project_path=tmp_path))
    given = ingest_params(name="image_folder", path="~nobody at all/x")
    told = hooks.before_node_run({"params:ingest": given})["params:ingest"]
    assert told.source.path == str(tmp_path / "~nobody at all" / "x")


def test_parameters_of_every_stage_are_checked_whatever_is_run():
    loaded = {"parameters": {"export": {"reject": 3}}}
    with pytest.raises(ValueError, match=r"export\.reject is 3; it must be true or false"):
        PreflightHooks().after_context_created(SimpleNamespace(config_loader=loaded))


def test_devices_that_are_not_here_are_refused_before_the_first_node():
    catalog = DataCatalog({"params:engine": MemoryDataset({"devices": 1024})})
    with pytest.raises(ValueError, match=r"engine\.devices is 1024, but this machine has"):
        PreflightHooks().before_pipeline_run({}, Pipeline([]), catalog)


def test_other_paths_and_nodes_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    hooks = PathHooks()
    hooks.after_context_created(SimpleNamespace(project_path=tmp_path))
    home = ingest_params(name="parquet", path="~/x")
    told = hooks.before_node_run({"params:ingest": home})["params:ingest"]
    assert told.source.path == "/home/somebody/x"
    absolute = ingest_params(name="parquet", path="/data/x")
    assert hooks.before_node_run({"params:ingest": absolute}) is None
    assert hooks.before_node_run({"params:ingest": ingest_params(name="digits")}) is None
    assert hooks.before_node_run({"images": None}) is None


def variant(tmp_path, seed):
    parameters = {choice: "x" for choices, _ in STAGES.values() for choice in choices}
    parameters |= {key: {} for _, keys in STAGES.values() for key in keys} | {"seed": seed}
    hooks = CheckpointHooks()
    hooks.after_context_created(
        SimpleNamespace(project_path=tmp_path, config_loader={"parameters": parameters})
    )
    return hooks


def saved(hooks):
    """The file that a training would be saved in now, made."""
    file = Checkpoint.of("train", lambda: "0" * 64).path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file


def test_a_run_that_ended_well_removes_its_own_checkpoints_only(tmp_path):
    (tmp_path / "data").mkdir()
    one, two = variant(tmp_path, 0), variant(tmp_path, 1)
    one.before_pipeline_run()
    mine = saved(one)
    one.on_pipeline_error(error=ValueError())
    assert Checkpoint.of("train", str) is None
    assert mine.exists()
    two.before_pipeline_run()
    other = saved(two)
    assert mine.parent != other.parent
    two.after_pipeline_run()
    assert mine.exists()
    assert not other.parent.exists()
    one.before_pipeline_run()
    assert saved(one) == mine
    one.after_pipeline_run()
    assert list((tmp_path / "data").iterdir()) == []
    assert Checkpoint.of("train", str) is None


def test_runs_share_results_in_the_folder_that_the_environment_names(tmp_path, monkeypatch):
    def shared():
        return SharedResult.of("train", lambda: "0" * 64)

    hooks = variant(tmp_path, 0)
    hooks.before_pipeline_run()
    assert shared() is None
    monkeypatch.setenv(SHARED_RESULTS, str(tmp_path / "shared"))
    hooks.before_pipeline_run()
    assert shared().path.parent == tmp_path / "shared"
    hooks.after_pipeline_run()
    assert shared() is None


@pytest.mark.parametrize(("stage", "family"), [(detect, "detector"), (relabel, "labeler")])
@pytest.mark.parametrize("name", ["oracle", "usual"])
@pytest.mark.parametrize("truth", [False, True])
def test_the_truth_is_refused_where_the_pipeline_withholds_it(stage, family, name, truth):
    usual = {"detector": Ensemble(members=(LGA(),)), "labeler": Drop()}[family]
    ideal = {"detector": Ensemble(members=(LGA(), Oracle())), "labeler": TrueLabels()}[family]
    chosen = SimpleNamespace(**{family: ideal if name == "oracle" else usual})
    catalog = SimpleNamespace(load={f"params:{stage.__name__.split('.')[-1]}": chosen}.get)
    pipeline = stage.create_pipeline(truth=truth)
    if name == "oracle" and not truth:
        with pytest.raises(ValueError, match=f"{family} '{ideal.name}' looks at the truth") as told:
            ensure_truth_is_given(pipeline, catalog)
        assert "`kedro run --pipelines ablation`" in str(told.value)
    else:
        ensure_truth_is_given(pipeline, catalog)


def test_a_self_test_is_not_shown_the_truth_either():
    catalog = SimpleNamespace(load={"params:detect": SimpleNamespace(detector=Oracle())}.get)
    with pytest.raises(ValueError, match="detector 'oracle' looks at the truth"):
        ensure_truth_is_given(selftest.create_pipeline(), catalog)


def known(attack, share, path=None):
    source = {"name": "image_folder", "path": "x"}
    given = {"source": source, "test_share": 0.2, "trusted_share": share, "trusted_path": path}
    catalog = DataCatalog()
    catalog["params:attack_name"] = attack
    catalog["params:ingest"] = given
    return catalog


def test_data_of_unknown_origin_is_not_said_to_be_attacked_or_partly_verified():
    for stage in (defend, selftest):
        with pytest.raises(ValueError, match="attack_name is 'badnets'"):
            ensure_nothing_is_known(stage.create_pipeline(), known("badnets", 0))
    pipeline = defend.create_pipeline()
    ensure_nothing_is_known(pipeline, known("none", 0))
    ensure_nothing_is_known(pipeline, known("none", 0.05, "verified"))
    with pytest.raises(ValueError, match="attack_name is 'badnets', but this pipeline takes"):
        ensure_nothing_is_known(pipeline, known("badnets", 0))
    with pytest.raises(ValueError, match=r"trusted_share is 0\.05, but nobody has verified"):
        ensure_nothing_is_known(pipeline, known("none", 0.05))
    for other in (detect, warmup):
        ensure_nothing_is_known(other.create_pipeline(), known("badnets", 0.05))


def choices(**changed):
    catalog = DataCatalog()
    usual = {
        "detect": {"detector": {"name": "lga"}, "suspect_ratio": 0.05},
        "relabel": {"labeler": {"name": "drop"}, "trusted_stamps": 0},
        "warmup": {"recipe": {"epochs": 1}},
        "features": {"name": "simclr", "recipe": {"epochs": 1}},
        "defence": {"name": "nab"},
    }
    for name, given in (usual | changed).items():
        catalog[f"params:{name}"] = given
    return catalog


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"detect": {"detector": {"name": "lga"}, "suspect_ratio": "apart"}}, "choose detector ac"),
        ({"warmup": {"recipe": None}}, r"set warmup\.recipe, now null"),
        (
            {"relabel": {"labeler": {"name": "nc", "align_images": True}, "trusted_stamps": 0}},
            "align_images",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_the_data_are_read(changed, told):
    for stage in (warmup, defend, selftest):
        ensure_choices_agree(stage.create_pipeline(), choices())
        with pytest.raises(ValueError, match=told):
            ensure_choices_agree(stage.create_pipeline(), choices(**changed))
        ensure_choices_agree(stage.create_pipeline(), choices(**changed, defence={"name": "none"}))
    ensure_choices_agree(ingest.create_pipeline(), DataCatalog())  # needs none of them


def chain(tmp_path):
    """The catalog and the nodes of a → b → c, of which a and b are on disk."""
    data_sets = {
        name: TextDataset(
            filepath=str(tmp_path / "data" / f"{name}.txt"),
            version=Version(None, "2024-01-01T00.00.01.000Z"),
        )
        for name in "abc"
    }
    for name in "ab":
        data_sets[name].save(name)

    def same(text: str) -> str:
        return text

    nodes = pipeline([node(same, "a", "b", name="to_b"), node(same, "b", "c", name="to_c")])
    return DataCatalog(data_sets), nodes


def test_what_a_run_would_not_make_again_is_verified_too(tmp_path):
    catalog, nodes = chain(tmp_path)
    assert needed(nodes, catalog, {}) == {"a"}
    assert needed(nodes, catalog, {"only_missing_outputs": True}) == {"a", "b"}


def test_damage_is_told_as_it_is_and_not_as_something_missing(tmp_path):
    catalog, _ = chain(tmp_path)
    ensure_readable("a", catalog)
    (file,) = tmp_path.rglob("a.txt/*/a.txt")
    file.write_text("A")
    with pytest.raises(DatasetError) as caught:
        ensure_readable("a", catalog)
    assert str(caught.value).startswith(
        f"a: {file} cannot be read: its SHA-256 is not that of what"
    )
    with pytest.raises(DatasetError, match="this run needs 'c', which is not on disk"):
        ensure_readable("c", catalog)
