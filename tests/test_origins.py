"""What was made from two data sets never meets in one run."""

import json
import shutil

import pytest
from kedro.framework.hooks import _create_hook_manager
from kedro.io import DataCatalog, DatasetError, Version
from kedro.pipeline import Node, Pipeline
from kedro.runner import SequentialRunner

from counterdoor.io import CachedTensorsDataset, JSONDataset
from counterdoor.origins import OriginHooks, note, origins_of

OLD, NEW = "a" * 64, "b" * 64
V1, V2, V3, V4 = (f"2026-01-01T00.00.0{second}.000Z" for second in (1, 2, 3, 4))


def read(data):
    return {"images": {"of": data}, "info": {"content_hash": data}}


def train(images):
    return {"net": images["of"]}


def detect(images, info, net):
    return {"data": info["content_hash"], "net": net["net"], "images": images["of"]}


INGEST = Pipeline(
    [Node(read, "params:data", {"images": "clean_images", "info": "dataset_info"}, name="ingest")]
)
WARMUP = Pipeline([Node(train, "clean_images", "warmup_net", name="warmup")])
DETECT = Pipeline(
    [Node(detect, ["clean_images", "dataset_info", "warmup_net"], "scored_ledger", name="detect")]
)


@pytest.fixture
def run(tmp_path):
    """Runs stages as Kedro does, a version each."""

    def go(pipeline, version, data=OLD, *, missing=False, **load):
        catalog = catalog_of(tmp_path, version, load)
        catalog["params:data"] = data
        manager = _create_hook_manager()
        manager.register(OriginHooks())
        given = {"run_params": {}, "pipeline": pipeline, "catalog": catalog}
        manager.hook.before_pipeline_run(**given)
        SequentialRunner().run(pipeline, catalog, manager, only_missing_outputs=missing)
        return catalog

    return go


def catalog_of(path, version, load=()):
    versions = dict(load)
    names = ("clean_images", "dataset_info", "warmup_net", "scored_ledger")
    return DataCatalog(
        {
            name: JSONDataset(
                filepath=str(path / f"{name}.json"), version=Version(versions.get(name), version)
            )
            for name in names
        }
    )


def files(path):
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


def test_stages_one_by_one_on_the_same_data_are_one_run(run):
    run(INGEST, V1)
    run(WARMUP, V2)
    run(INGEST, V3)  # read again, and the same
    made = run(DETECT, V4).load("scored_ledger")
    assert made == {"data": OLD, "net": OLD, "images": OLD}


def test_a_net_of_older_data_does_not_meet_newer_images(run, tmp_path):
    run(INGEST, V1)
    run(WARMUP, V2)
    run(INGEST, V3, NEW)
    before = files(tmp_path)
    with pytest.raises(DatasetError) as told:
        run(DETECT, V4)
    assert files(tmp_path) == before
    assert str(told.value) == (
        f"this run would mix two data sets: warmup_net (version {V2}) from the data aaaaaaaaaaaa; "
        f"clean_images, dataset_info (version {V3}) from the data bbbbbbbbbbbb. Run again first "
        "the stage warmup, with the same parameters (a plain `kedro run` runs all), or choose "
        "versions made from the same data by --load-versions"
    )
    run(WARMUP, V4)
    assert run(DETECT, "2026-01-01T00.00.05.000Z").load("scored_ledger")["net"] == NEW


def test_versions_of_the_same_older_data_can_be_chosen(run):
    run(INGEST + WARMUP, V1)
    run(INGEST, V2, NEW)
    older = dict.fromkeys(("clean_images", "dataset_info", "warmup_net"), V1)
    assert run(DETECT, V3, **older).load("scored_ledger")["data"] == OLD
    with pytest.raises(DatasetError, match="mix two data sets"):
        run(DETECT, V4, clean_images=V1)


def test_images_read_by_the_run_itself_do_not_meet_an_older_net(run, tmp_path):
    run(INGEST + WARMUP, V1)
    assert run(INGEST + DETECT, V2).load("scored_ledger")["net"] == OLD
    with pytest.raises(DatasetError, match="from the data aaaaaaaaaaaa"):
        run(INGEST + DETECT, V3, NEW)
    assert not [file for file in files(tmp_path) if V3 in file and "scored_ledger" in file]


def test_neither_do_they_where_missing_outputs_alone_are_made(run):
    run(INGEST + WARMUP, V1)
    run(INGEST, V2, NEW)
    with pytest.raises(DatasetError, match="mix two data sets"):
        run(INGEST + WARMUP + DETECT, V3, NEW, missing=True)


def test_images_of_a_run_killed_while_it_read_meet_nothing(run, tmp_path):
    run(INGEST + WARMUP, V1)
    run(INGEST, V2, NEW)
    shutil.rmtree(tmp_path / "dataset_info.json" / V2)
    with pytest.raises(DatasetError, match="its run did not end reading them") as told:
        run(DETECT, V3)
    assert "Run again first the stage ingest," in str(told.value)
    with pytest.raises(DatasetError, match="clean_images"):
        run(WARMUP, V3)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"content_hash"'])
def test_a_damaged_note_says_nothing(run, tmp_path, text):
    run(INGEST, V1)
    run(WARMUP, V2)
    (file,) = (tmp_path / "made_from").iterdir()
    assert json.loads(file.read_text()) == {"content_hash": OLD}
    file.write_text(text)
    told = f"warmup_net .version {V2}. from data that are not known"
    with pytest.raises(DatasetError, match=told):
        run(DETECT, V3)


def test_two_runs_of_one_version_do_not_note_two_data_sets(tmp_path):
    catalog = catalog_of(tmp_path, V1)
    note(V1, OLD, catalog)
    note(V1, OLD, catalog)
    with pytest.raises(DatasetError, match="another run has begun"):
        note(V1, NEW, catalog)
    assert files(tmp_path) == {f"made_from/{V1}.json"}


def test_what_is_cached_and_what_is_missing_is_not_looked_at(tmp_path):
    catalog = catalog_of(tmp_path, V1)
    cached = tmp_path / "features.safetensors" / V1 / "features.safetensors"
    cached.parent.mkdir(parents=True)
    cached.touch()
    filepath = str(tmp_path / "features.safetensors")
    catalog["cached"] = CachedTensorsDataset(filepath=filepath, version=Version(None, V1))
    catalog["params:data"] = OLD
    assert origins_of(["cached", "clean_images", "params:data", "parameters"], catalog) == {}
