"""The run parameters of ``defend``, its budget, and what it answers."""

import io
import json
import logging

import pytest

from counterdoor import defending
from counterdoor.defending import answering, spelt_out
from counterdoor.forecast import Forecast, Training
from counterdoor.hooks import KnownHooks
from counterdoor.recipe import Recipe

UNKNOWN = {
    "attack_name": "none",
    "detector_name": "ac",
    "labeler_name": "ud",
    "detect": {"suspect_ratio": "apart", "detector": {"honest": "features"}},
    "relabel": {"trusted_stamps": 0, "agreed_stamps": 0.2},
}


def test_paths_have_short_names():
    given = {"source_path": "x", "trusted_path": "y", "ingest": {"source": {"image_size": 8}}}
    source = {"image_size": 8, "path": "x"}
    assert spelt_out(given, []) == {"ingest": {"source": source, "trusted_path": "y"}}
    assert given["ingest"] == {"source": {"image_size": 8}}
    assert spelt_out({"seed": 3}, ["warmup"]) == {"seed": 3}


def test_of_data_of_unknown_origin_nothing_is_assumed():
    assert spelt_out({"seed": 3}, ["defend"]) == {
        **UNKNOWN,
        "seed": 3,
        "ingest": {"trusted_share": 0},
    }


def test_who_has_trusted_images_keeps_the_labeler_that_uses_them():
    assert spelt_out({"trusted_path": "y"}, ["defend"]) == {
        "attack_name": "none",
        "detector_name": "ac",
        "detect": {"suspect_ratio": "apart"},
        "ingest": {"trusted_path": "y"},
    }


@pytest.mark.parametrize(
    "given", [{"detector_name": "lga"}, {"detect": {"detector": {"name": "lga"}}}]
)
def test_another_detector_has_another_rule(given):
    made = spelt_out(given, ["defend"])
    assert made["detect"] == {"suspect_ratio": "adaptive", **given.get("detect", {})}
    assert made.get("detector_name") == given.get("detector_name")


def test_what_is_given_stays():
    given = {
        "attack_name": "blend",
        "labeler_name": "drop",
        "detect": {"suspect_ratio": 0.1, "detector": {"name": "ln"}},
        "relabel": {"trusted_stamps": 2, "agreed_stamps": 0.1, "calm_stamps": 0.1},
        "ingest": {"trusted_share": 0.3},
    }
    assert spelt_out(given, ["defend"]) == given


class Made:
    """The verdict that a run leaves in the catalog, beside its other files."""

    def __init__(self, data, folder):
        self.data = data
        self.folder = folder
        page = self.folder / "suspects_page.html" / "v1" / "suspects_page.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.touch()

    def load(self):
        return self.data

    def _get_load_path(self):
        return self.folder / "verdict.json" / "v1" / "verdict.json"


@pytest.mark.parametrize(
    ("answer", "code"), [("evidence", 3), ("undecided", 4), ("no evidence", 0)]
)
def test_defend_says_its_verdict_and_exits_by_it(capsys, tmp_path, answer, code):
    verdict = {"answer": answer, "chance": 0.02, "suspects": 7, "reasons": ["Because."]}
    made = {"verdict": Made(verdict, tmp_path)}
    run = answering(lambda **given: made)
    with pytest.raises(SystemExit) as stopped:
        run(pipelines=["defend"], pipeline=None, params={})
    assert stopped.value.code == code
    told = capsys.readouterr().out
    assert "Because." in told
    assert "suspects_page.html/v1/suspects_page.html" in told
    assert {3: "There is evidence", 4: "Undecided", 0: "There is no evidence"}[code] in told
    assert run(pipelines=["export"], pipeline=None, params={}) == made


def test_as_json_it_is_one_object(capsys, tmp_path):
    verdict = {"answer": "evidence", "chance": 0.02, "suspects": 7, "reasons": ["Because."]}
    made = {"verdict": Made(verdict, tmp_path)}
    with pytest.raises(SystemExit) as stopped:
        answering(lambda **given: made)(pipelines=["defend"], params={}, as_json=True)
    assert stopped.value.code == 3
    files = {"suspects_page": str(tmp_path / "suspects_page.html/v1/suspects_page.html")}
    unasked = {"valley": None, "changed_suspects": None, "changed_others": None}
    unasked |= {"conflicts": 0, "repeats": 0}
    told = {**verdict, **unasked, "exit_code": 3, "files": files}
    assert json.loads(capsys.readouterr().out) == told


@pytest.fixture
def known(monkeypatch):
    hooks = KnownHooks()
    monkeypatch.setattr("counterdoor.hooks.KNOWN", hooks)
    return hooks


def test_a_run_that_fails_later_gives_its_verdict_all_the_same(capsys, tmp_path, known, caplog):
    verdict = {"answer": "evidence", "chance": 0.02, "suspects": 7, "reasons": ["Because."]}
    catalog = {
        "verdict": Made(verdict, tmp_path),
        "suspects_page": Made("page", tmp_path),
        "other": Made(1, tmp_path),
    }

    def command(**given):
        known.before_pipeline_run(catalog)
        with caplog.at_level("INFO"):
            for name in catalog:
                known.after_dataset_saved(name, catalog[name].load())
        assert "There is evidence of poisoning. Because." in caplog.text
        raise ValueError("the disk is full")

    with pytest.raises(ValueError, match="the disk is full"):
        answering(command)(pipelines=["defend"], params={})
    told = capsys.readouterr().out
    assert "There is evidence of poisoning." in told
    assert "suspects_page.html/v1/suspects_page.html" in told
    with pytest.raises(ValueError, match="the disk is full"):
        answering(command)(pipelines=["defend"], params={}, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["answer"], told["exit_code"], told["error"]) == (
        "evidence",
        1,
        "the disk is full",
    )


def test_a_run_that_fails_before_there_is_a_verdict_tells_none(capsys, tmp_path, known):
    def refused(**given):
        raise ValueError("no")

    def begun(**given):
        known.before_pipeline_run({})
        raise ValueError("no")

    for command in (refused, begun):
        known.datasets = {"verdict": Made({}, tmp_path)}  # of a run before
        with pytest.raises(ValueError, match="no"):
            answering(command)(pipelines=["defend"], params={})
        assert capsys.readouterr().out == ""


def test_what_the_stamp_changes_is_told_with_the_verdict(capsys, tmp_path):
    verdict = {"answer": "evidence", "chance": 0.02, "suspects": 7, "reasons": ["Because."]}
    effect = {"changed_suspects": 0.75, "changed_others": 0.01}
    made = {"verdict": Made(verdict, tmp_path), "stamp_effect": Made(effect, tmp_path)}
    with pytest.raises(SystemExit):
        answering(lambda **given: made)(pipelines=["defend"], params={}, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["changed_suspects"] == 0.75
    assert told["reasons"] == [
        "Because.",
        "Under the stamp the hardened net takes 75.0% of the suspects and 1.0% of the others for "
        "another class.",
    ]


def test_a_self_test_is_another_pipeline_of_the_same_run_and_tells_what_it_found(capsys, tmp_path):
    ran = []
    verdict = {"answer": "evidence", "chance": None, "suspects": 7, "reasons": ["Because."]}
    made = {"verdict": Made(verdict, tmp_path), "self_test": Made({"words": "Found."}, tmp_path)}

    def command(**given):
        ran.append(given)
        return made

    for as_json in (False, True):
        with pytest.raises(SystemExit):
            answering(command)(
                *(), pipelines=["defend"], params={}, self_test=True, as_json=as_json
            )
    text, told = capsys.readouterr().out.rsplit("\n{", 1)
    assert "Found." in text
    assert json.loads("{" + told)["self_test"] == {"words": "Found."}
    assert [each["pipelines"] for each in ran] == [["defend", "selftest"]] * 2
    made.pop("verdict")
    assert answering(command)(pipelines=["selftest"], params={}) == made
    assert capsys.readouterr().out == "Found.\n"
    assert ran[2]["params"]["attack_name"] == "none"  # nothing is known, as in defend


@pytest.mark.parametrize(
    "given", [{"dry_run": True}, {"self_test": True}, {"as_json": True}, {"max_minutes": 3}]
)
def test_what_is_of_defend_alone_is_refused_elsewhere(given):
    params = {name: value for name, value in given.items() if name == "max_minutes"}
    options = {name: value for name, value in given.items() if name != "max_minutes"}
    with pytest.raises(ValueError, match="go with --pipelines defend alone"):
        answering(lambda **given: {})(pipelines=[], params=params, **options)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"source_path": ""}, "source_path is ''; it must be the path of a folder or file"),
        ({"trusted_path": None}, "trusted_path is None; it must be the path of a folder"),
        ({"source_path": 5}, "source_path is 5; it must be the path"),
        ({"ingest": 5}, "ingest is 5; it must be a mapping of parameters"),
        ({"ingest": {"source": 5}, "source_path": "x"}, r"ingest\.source is 5; it must be a map"),
        ({"detect": [1]}, r"detect is \[1\]; it must be a mapping"),
        ({"detect": {"detector": "ac"}}, r"detect\.detector is 'ac'; it must be a mapping"),
        ({"relabel": "vd"}, "relabel is 'vd'; it must be a mapping"),
    ],
)
def test_what_cannot_be_spelt_out_is_refused(given, told):
    with pytest.raises(ValueError, match=told):
        spelt_out(given, ["defend"])


@pytest.mark.parametrize("minutes", [0, -1, True, "long", float("nan"), float("inf"), 10**30])
def test_a_budget_is_a_number_above_0(minutes):
    run = answering(lambda **given: {})
    with pytest.raises(ValueError, match=r"max_minutes is .*; it must be a number above 0"):
        run(pipelines=["defend"], params={"max_minutes": minutes})


class Log:
    """A console beside pytest's own handlers, as the project has one."""

    def __enter__(self):
        self.stream = io.StringIO()
        self.handler = logging.StreamHandler(self.stream)
        logging.getLogger().addHandler(self.handler)
        return self

    def __exit__(self, *_):
        logging.getLogger().removeHandler(self.handler)

    @property
    def text(self):
        return self.stream.getvalue()


@pytest.mark.parametrize(("quiet", "as_json"), [(False, False), (True, False), (False, True)])
def test_a_quiet_run_shows_warnings_alone_and_listeners_hear_all(caplog, quiet, as_json):
    logger = logging.getLogger("counterdoor.tests")
    caplog.set_level(logging.INFO, logger.name)

    def command(**given):
        logger.info("an epoch")
        logger.warning("beware")
        return {}

    with Log() as log:
        answering(command)(pipelines=["defend"], params={}, quiet=quiet, as_json=as_json)
        assert ("an epoch" in log.text) == (not (quiet or as_json))
        assert "beware" in log.text
        logger.info("afterwards")
        assert "afterwards" in log.text
    assert [each.message for each in caplog.records] == ["an epoch", "beware", "afterwards"]


class Looks(list):
    """What was forecast; and the hash of the images that there are."""

    hashed = "one"


@pytest.fixture
def ahead(monkeypatch, tmp_path):
    """A project where a look ahead finds 60 + 600 seconds of training, and 20 besides."""
    monkeypatch.chdir(tmp_path)
    looks = Looks()

    def read(params, env, conf_source):
        made = {"info": {"content_hash": looks.hashed}}
        return defending.Ahead(tmp_path, made, {}, 10.0)

    def look(ahead, *, self_test=False):
        looks.append(ahead)
        trainings = [
            Training("warmup", None, Recipe(epochs=10), 600, rate=100.0),
            Training("train", "train.recipe.epochs", Recipe(epochs=40), 1500, rate=100.0),
        ]
        about = {
            **dict.fromkeys(("n_train", "n_test", "n_trusted", "n_rejected"), 5),
            "classes": 2,
            "image_shape": [3, 8, 8],
            "reading_seconds": 10.0,
            "free_bytes": 10**12,
        }
        plan = Forecast(trainings, 10.0, 3 * 10**6)
        return plan.tested(10**6) if self_test else plan, about

    monkeypatch.setattr(defending, "read_ahead", read)
    monkeypatch.setattr(defending, "look_ahead", look)
    return looks


def test_a_dry_run_tells_and_does_nothing(ahead, tmp_path, capsys):
    def command(**given):
        raise AssertionError("it ran")

    answering(command)(pipelines=["defend"], params={}, dry_run=True)
    told = capsys.readouterr().out
    assert "40 epochs of 1,500 images, 100 images/s: 10 min" in told
    assert "In all about 12 min and 3 MB of disk" in told
    params = {"max_minutes": 7}
    answering(command)(pipelines=["defend"], params=params, dry_run=True, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [each["epochs"] for each in told["trainings"]] == [10, 20]
    assert told["seconds"] == 10.0 + 60.0 + 300.0
    assert told["disk_bytes"] == 3 * 10**6
    answering(command)(pipelines=["defend"], params={}, dry_run=True, self_test=True)
    told = capsys.readouterr().out
    assert "canary warmup" in told
    assert "In all about 13 min and 4 MB of disk" in told
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_cut_to_its_budget_and_after_a_kill_to_the_same(ahead, tmp_path):
    ran = []

    def command(*, killed=False, **given):
        ran.append(given["params"])
        if killed:
            raise KeyboardInterrupt
        return {}

    params = {"max_minutes": 7, "train": {"recipe": {"batch_size": 32}}}
    run = answering(command)
    with pytest.raises(KeyboardInterrupt):
        run(pipelines=["defend"], params=params, killed=True)
    run(pipelines=["defend"], params=params)
    assert ran[0]["train"]["recipe"] == {"batch_size": 32, "epochs": 20}
    assert ran[1] == ran[0]
    assert "max_minutes" not in ran[0]
    assert len(ahead) == 1
    assert not list(tmp_path.rglob("*.json"))
    run(pipelines=["defend"], params={**params, "max_minutes": 100})
    assert ran[2]["train"]["recipe"] == {"batch_size": 32}
    assert params["train"] == {"recipe": {"batch_size": 32}}


def killed(**given):
    raise KeyboardInterrupt


def test_a_run_that_was_killed_is_cut_anew_if_its_images_have_changed(ahead, tmp_path):
    given = {"pipelines": ["defend"], "params": {"max_minutes": 7}}
    for hashed, looks in (("one", 1), ("one", 1), ("two", 2), ("two", 2), ("one", 3)):
        ahead.hashed = hashed
        with pytest.raises(KeyboardInterrupt):
            answering(killed)(**given)
        assert len(ahead) == looks
    (note,) = tmp_path.rglob("*.json")
    for damaged in ("", "[]", '{"minutes": 7}', note.read_text()[:40]):
        note.write_text(damaged)
        with pytest.raises(KeyboardInterrupt):
            answering(killed)(**given)
    assert len(ahead) == 7


def test_a_part_of_defend_without_verdict_says_none(capsys):
    assert answering(lambda **given: {})(pipelines=["defend"], params={}) == {}
    assert capsys.readouterr().out == ""
