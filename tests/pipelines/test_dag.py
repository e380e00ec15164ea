"""The wiring: what is registered, where everything is stored, and who may read what."""

import logging
import sys
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from kedro.framework.project import configure_project
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.io import AbstractVersionedDataset, MemoryDataset

import counterdoor.io
from counterdoor.config import STAGES
from counterdoor.pipeline_registry import register_pipelines

pytestmark = pytest.mark.filterwarnings(
    # Kedro's own call of a function that OmegaConf 2.4 renamed.
    "ignore:register_new_resolver",
    # Kedro's parameter validation asks an instance for what Pydantic keeps on the class.
    "ignore:Accessing the 'model_fields' attribute on the instance",
)

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = ["ingest", "attack", "warmup", "detect", "relabel", "train", "evaluate"]
STAGES_IN_ORDER = [*EXPERIMENT, "export"]
ORDER = [*STAGES_IN_ORDER, "selftest"]
FOLDERS = {
    "ingest": "01_raw",
    "attack": "02_intermediate",
    "warmup": "06_models",
    "detect": "07_model_output",
    "relabel": "05_model_input",
    "train": "06_models",
    "evaluate": "08_reporting",
    "export": "06_models",
    "selftest": "08_reporting",
}
DEFENCE = ("warmup", "detect", "relabel", "train")
CACHED = {
    "cached_attack_preparation": "attack_preparation",
    "cached_features": "features",
    "canary.cached_features": "canary.features",
}
"""What is read before its stage writes it anew, and the data set whose file it is."""
TEST_SET = {"test_images", "test_ledger", "triggered_test_images"}


def is_parameter(name):
    return name == "parameters" or name.startswith("params:")


@pytest.fixture(scope="module")
def pipelines():
    configure_project("counterdoor")
    return register_pipelines()


@pytest.fixture(scope="module")
def nodes(pipelines):
    return pipelines["__default__"].nodes


@pytest.fixture(scope="module")
def every_node(pipelines):
    """Of all stages, and those that only ``defend`` has."""
    own = ("train_base", "check_export")
    base = [node for node in pipelines["defend"].nodes if node.name in own]
    return [*(node for stage in ORDER for node in own_nodes(pipelines, stage)), *base]


@pytest.fixture(scope="module")
def producers(every_node):
    made = {output: node for node in every_node for output in node.outputs}
    return made | {cached: made[name] for cached, name in CACHED.items()}


@pytest.fixture(scope="module")
def catalog():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        bootstrap_project(ROOT)
        with KedroSession.create(project_path=ROOT, env="base") as session:
            yield session.load_context().catalog


@pytest.fixture(scope="module")
def stored(pipelines):
    """Names of all data sets that are not parameters."""
    names = {name for pipeline in pipelines.values() for name in pipeline.datasets()}
    return sorted(name for name in names if not is_parameter(name))


def stage_of(node):
    (stage,) = node.tags if node.namespace is None else {"selftest"}
    return stage


def own_nodes(pipelines, stage):
    """The self-test starts with the ingest of all others."""
    return [node for node in pipelines[stage].nodes if stage_of(node) == stage]


def reads(node):
    return {name for name in node.inputs if not is_parameter(name)}


def parameters_of(node):
    return {name.removeprefix("params:") for name in node.inputs if is_parameter(name)}


def test_a_parameter_has_one_type_in_all_pipelines(caplog):
    """Of two, Kedro warns at every start, and takes the later one."""
    bootstrap_project(ROOT)
    with (
        caplog.at_level(logging.WARNING, logger="kedro"),
        KedroSession.create(ROOT) as session,
    ):
        assert session.load_context().params["features"]
    assert [each.getMessage() for each in caplog.records] == []


def test_registered_pipelines(pipelines):
    assert sorted(pipelines) == sorted([*ORDER, "__default__", "ablation", "defend"])


def test_default_is_all_of_them_but_export(pipelines):
    stages = [set(pipelines[stage].nodes) for stage in EXPERIMENT]
    assert set(pipelines["__default__"].nodes) == set().union(*stages)
    assert sum(map(len, stages)) == len(pipelines["__default__"].nodes)
    assert all(stages)


def test_every_node_has_its_stage_as_its_only_tag_and_a_name(pipelines):
    for stage in STAGES_IN_ORDER:
        for node in pipelines[stage].nodes:
            assert node.tags == {stage}
            assert node.name.split("(")[0].isidentifier()
    assert all("selftest" in node.tags for node in own_nodes(pipelines, "selftest"))


def test_the_experiment_needs_parameters_only(pipelines):
    inputs = pipelines["__default__"].inputs()
    cached = {name for name in CACHED if not name.startswith("canary.")}
    assert {name for name in inputs if not is_parameter(name)} == cached


def test_every_stage_reads_earlier_stages_only(pipelines, producers):
    for number, stage in enumerate(ORDER):
        for name in pipelines[stage].inputs():
            if not is_parameter(name) and name not in CACHED:
                assert ORDER.index(stage_of(producers[name])) < number, (stage, name)


def test_every_data_set_is_in_the_catalog_and_persistent(catalog, stored):
    for name in stored:
        assert name in catalog, name
        dataset = catalog[name]
        assert not isinstance(dataset, MemoryDataset), name
        assert isinstance(dataset, AbstractVersionedDataset), name
        assert dataset._version is not None, name
        assert type(dataset).__module__.startswith("counterdoor.io"), name
        assert type(dataset) is getattr(counterdoor.io, type(dataset).__name__), name


def test_the_catalog_has_nothing_that_nobody_makes(catalog, stored):
    listed = {name for name in catalog if not is_parameter(name)}
    assert listed == set(stored)


def test_every_data_set_is_shown_with_the_stage_that_makes_it(catalog, stored, producers):
    for name in stored:
        shown = catalog[name].metadata["kedro-viz"]["layer"]
        assert shown == stage_of(producers[name]), name


def test_every_data_set_lies_in_its_stages_folder(catalog, stored, producers):
    for name in stored:
        path = Path(str(catalog[name]._filepath)).relative_to(ROOT)
        assert path.parts[0] == "data", name
        assert path.parts[1] == FOLDERS[stage_of(producers[name])], name
        assert path.stem == CACHED.get(name, name), name


def test_no_two_data_sets_share_a_file(catalog, stored):
    paths = {name: str(catalog[name]._filepath) for name in stored}
    assert len(set(paths.values())) == len(paths) - len(CACHED)
    for cached, name in CACHED.items():
        assert paths[cached] == paths[name]


def test_what_is_cached_is_read_by_the_node_that_makes_it_alone(every_node, producers):
    for cached, name in CACHED.items():
        readers = [node.name for node in every_node if cached in node.inputs]
        assert readers == [producers[name].name]


def test_every_artifact_can_be_told_by_its_extension(catalog, stored):
    extensions = {
        "ImagesDataset": ".npy",
        "ParquetDataset": ".parquet",
        "JSONDataset": ".json",
        "TextDataset": (".html", ".md"),
        "BytesDataset": ".onnx",
        "CSVDataset": ".csv",
        "HardenedDataset": ".safetensors",
        "FigureDataset": ".png",
        "TrainedNetDataset": ".safetensors",
        "TensorsDataset": ".safetensors",
        "CachedTensorsDataset": ".safetensors",
    }
    for name in stored:
        dataset = catalog[name]
        assert str(dataset._filepath).endswith(extensions[type(dataset).__name__]), name


def test_metadata_for_tracking_is_of_a_known_kind(catalog, stored):
    kinds = defaultdict(set)
    for name in stored:
        kinds[catalog[name].metadata.get("mlflow")].add(name)
    told = {"tags", "metrics", "history", "seconds", "artifact", "model", "answer"}
    assert set(kinds) == {None, *told}
    assert kinds["answer"] == {"verdict", "self_test"}
    assert kinds["tags"] == {"dataset_info"}
    assert kinds["metrics"] == {"metrics", "plan_check", "stamp_effect"}
    assert kinds["seconds"] == {"seconds"}
    assert kinds["history"] == {
        name for name in stored if name.endswith("_history") and not name.startswith("canary.")
    }
    assert kinds["model"] == {"defended_net", "hardened"}
    told = {"report", "rejected_files", "suspects", "suspects_page", "cleaned", "model_card"}
    assert {name for name in stored if name.endswith("_figure")} | told <= kinds["artifact"]
    # Clean data and what only the adversary knows are not sent to the tracking server.
    assert {"oracle", "attack_preparation", "clean_images", "clean_ledger"} <= kinds[None]


CHECKS = {"plan_check", "export_check"}


def test_defend_checks_before_it_trains_and_answers_as_soon_as_it_can(pipelines):
    order = [node.name for node in pipelines["defend"].nodes]
    trainings = [name for name in order if name in TRAININGS]
    assert set(trainings) == TRAININGS
    first, full = order.index(trainings[0]), order.index("train_defended")
    assert order.index("check_plan") < order.index("check_export") < first
    assert order.index("detect") < order.index("judge") < full
    assert order.index("relabel") < order.index("list_suspects") < full


TRAININGS = {"warm_up", "train_plain", "learn_features", "relabel", "train_base", "train_defended"}


def variant_keys(catalog_path, stage):
    """All parameters that the path of a stage depends on."""
    keys = set()
    for name, (choices, read) in STAGES.items():
        keys |= {*choices, *read}
        if name == stage:
            return keys
    raise AssertionError(catalog_path)


def test_a_path_depends_on_every_parameter_that_its_artifact_depends_on(nodes, producers):
    """Walk back from each artifact and gather what is read on the way.

    Of :data:`CHECKS` only the existence counts: a warm-up does
    not depend on the parameters that the check looked at. Detector, labeler and defence
    decide whether features are learnt, but have no part in what they are.
    """
    entries = yaml.safe_load((ROOT / "conf" / "base" / "catalog.yml").read_text())

    def needed(name, seen):
        node = producers[name]
        if node.name in seen:
            return set()
        seen.add(node.name)
        keys = parameters_of(node)
        if node.name == "learn_features":
            keys -= {"detect", "relabel", "defence"}
        for source in reads(node) - {*CHECKS, *CACHED}:
            keys |= needed(source, seen)
        return keys

    for name in producers:
        path = entries[name]["filepath"]
        stage = path.split("${variant:")[1].split("}")[0]
        assert needed(name, set()) <= variant_keys(path, stage), name
    later = {"export", "selftest"}
    read = {key for stage, (_, keys) in STAGES.items() for key in keys if stage not in later}
    assert needed("metrics", set()) == read


def test_only_evaluate_reads_the_oracle(nodes):
    readers = {node.name: stage_of(node) for node in nodes if "oracle" in node.inputs}
    assert set(readers.values()) == {"evaluate"}
    assert {"measure"} <= set(readers)


def test_the_ablation_is_the_experiment_with_the_oracle_given_to_detector_and_labeler(pipelines):
    told = {node.name: node for node in pipelines["ablation"].nodes}
    usual = {node.name: node for node in pipelines["__default__"].nodes}
    assert set(told) == set(usual)
    changed = {name for name, node in told.items() if node != usual[name]}
    assert changed == {"detect", "relabel"}
    for name in changed:
        assert told[name].inputs == [*usual[name].inputs, "oracle"]
        assert told[name].outputs == usual[name].outputs
        assert told[name].tags == usual[name].tags


def test_no_pipeline_but_the_ablation_shows_the_defence_the_oracle(pipelines):
    """Also none that is added later."""
    for name, pipeline in pipelines.items():
        if name != "ablation":
            readers = {stage_of(node) for node in pipeline.nodes if "oracle" in node.inputs}
            assert readers <= {"evaluate"}, name


def test_data_of_unknown_origin_meets_no_attack_and_no_truth(pipelines):
    """The stages of the experiment but for the attack, its images taken as they came."""
    nodes = {node.name: node for node in pipelines["defend"].nodes}
    usual = {node.name: node for stage in STAGES_IN_ORDER for node in pipelines[stage].nodes}
    assert {stage_of(node) for node in nodes.values()} == {*STAGES_IN_ORDER} - {
        "attack",
        "evaluate",
    }
    assert set(usual) - set(nodes) == {
        *(node.name for stage in ("attack", "evaluate") for node in pipelines[stage].nodes),
        "train_undefended",
    }
    assert set(nodes) - set(usual) == {"check_export", "train_base"}
    other = {
        "images": "clean_images",
        "ledger": "clean_ledger",
        "undefended_net": "base_net",
        "undefended_history": "base_history",
    }
    for name in set(nodes) & set(usual):
        assert nodes[name].outputs == usual[name].outputs, name
        waits = {"plan_check": "export_check"} if "plan_check" in usual[name].inputs else {}
        named = other | waits
        assert nodes[name].inputs == [named.get(each, each) for each in usual[name].inputs], name
    names = pipelines["defend"].datasets()
    assert not names & {"oracle", "attack_preparation", "images", "ledger", "triggered_test_images"}
    read = {key for node in nodes.values() for key in parameters_of(node)}
    assert not read & {"attack", "attack_name", "poison_ratio", "label_mapping"}
    for node in nodes.values():
        if reads(node) & TEST_SET:
            assert stage_of(node) == "export"


def test_the_self_test_looks_as_defend_does(pipelines):
    """The same nodes on a copy; of the truth only what was planted in it is read."""
    copies = {node.name: node for node in own_nodes(pipelines, "selftest")}
    for stage in ("warmup", "detect"):
        for node in pipelines[stage].nodes:
            copy = copies.pop(f"canary.{node.name}")
            expected = [
                name if is_parameter(name) or name == "dataset_info" else f"canary.{name}"
                for name in node.inputs
            ]
            assert (copy.func.__name__, copy.inputs) == (node.func.__name__, expected)
    assert set(copies) == {"canary.plant", "canary.tell"}
    assert not pipelines["selftest"].datasets() & {"oracle", *TEST_SET} - {
        output for node in pipelines["ingest"].nodes for output in node.outputs
    }


def test_only_attack_writes_the_oracle(nodes):
    assert {stage_of(node) for node in nodes if "oracle" in node.outputs} == {"attack"}


@pytest.mark.parametrize("name", ["clean_images", "clean_ledger"])
def test_only_attack_reads_the_clean_training_set(nodes, name):
    assert {stage_of(node) for node in nodes if name in node.inputs} == {"attack"}


@pytest.mark.parametrize("name", sorted(TEST_SET))
def test_only_attack_and_evaluate_read_the_test_set(nodes, name):
    readers = {stage_of(node) for node in nodes if name in node.inputs}
    assert "evaluate" in readers
    assert readers <= {"attack", "evaluate"}


@pytest.mark.parametrize("stage", DEFENCE)
def test_the_defence_sees_what_a_defender_sees(pipelines, producers, stage):
    """Walk node by node: up to the attack's outputs, nobody reads what is not the defender's."""
    allowed_from_attack = {"images", "ledger"}
    forbidden = {"oracle", "attack_preparation", "clean_images", "clean_ledger", *TEST_SET}
    todo, seen = list(pipelines[stage].nodes), set()
    assert todo
    while todo:
        node = todo.pop()
        if node.name in seen:
            continue
        seen.add(node.name)
        assert stage_of(node) in DEFENCE, node.name
        assert not reads(node) & forbidden, node.name
        assert not parameters_of(node) & {
            "attack",
            "attack_name",
            "poison_ratio",
            "label_mapping",
            "parameters",
        }
        for name in reads(node):
            source = producers[name]
            if stage_of(source) == "attack":
                assert name in allowed_from_attack, (node.name, name)
            elif stage_of(source) == "ingest":
                assert name == "dataset_info", (node.name, name)
            else:
                todo.append(source)


def test_no_node_reads_all_parameters(every_node):
    """``parameters`` would let a stage read another stage's without being seen."""
    assert not [node.name for node in every_node if "parameters" in node.inputs]


def test_nothing_is_trained_before_the_plan_is_checked(nodes, producers):
    trainers = [
        node
        for node in nodes
        if any(name.endswith("_net") or name == "features" for name in node.outputs)
    ]
    assert {node.name for node in trainers} == {
        "warm_up",
        "train_plain",
        "learn_features",
        "train_undefended",
        "train_defended",
    }

    def ancestors(node, seen):
        for name in reads(node):
            source = producers[name]
            if source.name not in seen:
                seen.add(source.name)
                ancestors(source, seen)
        return seen

    for node in trainers:
        assert "check_plan" in ancestors(node, set()), node.name


def test_the_layers_have_no_cycle(catalog, every_node):
    layers = {stage: set() for stage in ORDER}
    for node in every_node:
        for name in reads(node):
            for output in node.outputs:
                source, target = (
                    catalog[each].metadata["kedro-viz"]["layer"] for each in (name, output)
                )
                if source != target:
                    layers[target].add(source)
    order = list(TopologicalSorter(layers).static_order())  # raises CycleError
    order.remove("selftest")  # a branch of its own
    assert order == STAGES_IN_ORDER


def test_features_are_shared_by_all_detectors_and_labelers(catalog):
    path = str(catalog["features"]._filepath)
    assert path == str(catalog["cached_features"]._filepath)
    entries = yaml.safe_load((ROOT / "conf" / "base" / "catalog.yml").read_text())
    assert "${variant:features}" in entries["features"]["filepath"]
    later = {"warmup", "detect", "relabel", "detector_name", "labeler_name"}
    assert not variant_keys(path, "features") & later


def test_features_know_no_label(nodes):
    (node,) = [node for node in nodes if node.name == "learn_features"]
    assert reads(node) == {"images", "plan_check", "cached_features"}
