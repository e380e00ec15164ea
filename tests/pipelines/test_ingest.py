"""The first stage on small arrays: splits, trusted samples, and the hash of the content."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydantic import ValidationError

from counterdoor.content import content_hash
from counterdoor.params import IngestParams
from counterdoor.pipelines.ingest.nodes import ingest
from counterdoor.sources import ImageSet, Rejected
from counterdoor.sources.digits import Digits

COUNTS = [30, 11, 47, 8]
NAMES = ("ant", "bee", "cow", "dog")


def image_set(counts=COUNTS, names=NAMES, seed=0, test_counts=None):
    """Images in mixed order whose pixels say which row they are."""
    generator = np.random.default_rng(seed)

    def part(counts, offset):
        labels = generator.permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int64)
        rows = (np.arange(len(labels)) + offset).astype(np.uint8)
        images = np.broadcast_to(rows[:, None, None, None], (len(labels), 1, 4, 4)).copy()
        return images, labels

    images, labels = part(counts, 0)
    test = part(test_counts, 150) if test_counts else (None, None)
    return ImageSet(images, labels, names, *test)


@pytest.fixture
def given(monkeypatch):
    """Makes the digits' source give a copy of these images, as a source does."""

    def give(data):
        def read(self):
            return replace(data, images_nchw=data.images_nchw.copy())

        monkeypatch.setattr(Digits, "__call__", read)
        return data

    return give


def params(test_share=0.25, trusted_share=0.2):
    return IngestParams(
        source={"name": "digits"}, test_share=test_share, trusted_share=trusted_share
    )


def rows_of(images):
    return images[:, 0, 0, 0].astype(int)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("test_share", [0.1, 0.25, 0.5])
def test_the_split_is_disjoint_and_complete_and_keeps_each_image_with_its_label(
    given, seed, test_share
):
    data = given(image_set())
    result = ingest(params(test_share), seed)
    train, test = rows_of(result["images"]), rows_of(result["test_images"])
    assert sorted([*train, *test]) == list(range(sum(COUNTS)))
    assert result["ledger"]["label"].tolist() == data.labels[train].tolist()
    assert result["test_ledger"]["label"].tolist() == data.labels[test].tolist()


@pytest.mark.parametrize("counts", [[1500, 700], [40, 5000], [1024, 1024]], ids=str)
def test_a_split_of_more_images_than_are_moved_at_once(given, counts):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1], counts))
    rows = np.arange(len(labels), dtype=np.uint16).view(np.uint8).reshape(-1, 1, 1, 2)
    given(ImageSet(rows.copy(), labels, ("a", "b")))
    result = ingest(params(0.3), 0)
    train, test = (
        np.ascontiguousarray(result[part]).view(np.uint16).ravel()
        for part in ("images", "test_images")
    )
    assert sorted([*train, *test]) == list(range(len(labels)))
    assert np.all(np.diff(train.astype(int)) > 0)
    assert result["ledger"]["label"].tolist() == labels[train].tolist()
    assert result["test_ledger"]["label"].tolist() == labels[test].tolist()


def test_a_split_takes_the_memory_of_its_test_part_alone(monkeypatch):
    n, size = 20_000, 3 * 16 * 16

    def read(self):
        labels = np.arange(n) % 10
        return ImageSet(np.ones((n, 3, 16, 16), np.uint8), labels, tuple("0123456789"))

    monkeypatch.setattr(Digits, "__call__", read)
    tracemalloc.start()
    try:
        ingest(params(0.1), 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.4 * n * size


@pytest.mark.parametrize("test_share", [0.1, 0.25, 0.5])
def test_the_split_is_stratified(given, test_share):
    given(image_set())
    result = ingest(params(test_share), 0)
    drawn = np.bincount(result["test_ledger"]["label"], minlength=4)
    assert drawn.tolist() == [round(test_share * count) for count in COUNTS]


@pytest.mark.parametrize("trusted_share", [0.0, 0.1, 0.5])
def test_trusted_samples_are_a_share_of_each_class_of_the_training_set(given, trusted_share):
    given(image_set())
    ledger = ingest(params(trusted_share=trusted_share), 0)["ledger"]
    for _, group in ledger.groupby("label"):
        assert group["trusted"].sum() == round(trusted_share * len(group))


def test_a_ledger_has_a_row_an_image(given):
    given(image_set())
    result = ingest(params(), 0)
    assert list(result["ledger"]) == ["sample_id", "label", "trusted"]
    assert list(result["test_ledger"]) == ["sample_id", "label"]
    for images, ledger in (("images", "ledger"), ("test_images", "test_ledger")):
        assert result[ledger]["sample_id"].tolist() == list(range(len(result[images])))
        assert result[images].dtype == np.uint8
    assert result["ledger"]["trusted"].dtype == bool


def test_the_seed_decides_the_split_and_who_is_trusted(given):
    given(image_set())
    one, again, other = (ingest(params(), seed) for seed in (0, 0, 1))
    assert rows_of(one["images"]).tolist() == rows_of(again["images"]).tolist()
    assert one["ledger"].equals(again["ledger"])
    assert rows_of(one["images"]).tolist() != rows_of(other["images"]).tolist()


def test_the_trusted_share_does_not_move_the_split(given):
    given(image_set())
    few, many = (ingest(params(trusted_share=share), 0) for share in (0.1, 0.5))
    assert rows_of(few["test_images"]).tolist() == rows_of(many["test_images"]).tolist()
    assert few["ledger"]["trusted"].sum() < many["ledger"]["trusted"].sum()


def test_a_test_set_of_the_sources_own_is_taken_as_it_is(given):
    data = given(image_set(test_counts=[2, 3, 1, 2]))
    result = ingest(params(), 0)
    np.testing.assert_array_equal(result["images"], data.images_nchw)
    np.testing.assert_array_equal(result["test_images"], data.test_images_nchw)
    assert result["ledger"]["label"].tolist() == data.labels.tolist()
    assert result["test_ledger"]["label"].tolist() == data.test_labels.tolist()


def test_info_describes_the_result(given):
    given(image_set())
    result = ingest(params(), 0)
    info = result["info"]
    assert info["source"] == "digits"
    assert info["class_names"] == list(NAMES)
    assert info["image_shape"] == [1, 4, 4]
    assert info["n_train"] == len(result["images"])
    assert info["n_test"] == len(result["test_images"])
    assert info["n_trusted"] == result["ledger"]["trusted"].sum()
    assert info["content_hash"] == content_hash(
        result["images"],
        result["ledger"]["label"].to_numpy(),
        result["test_images"],
        result["test_ledger"]["label"].to_numpy(),
    )


def test_nothing_is_rejected_by_most_sources(given, tmp_path):
    """The empty table has the columns and kinds of a full one, on disk as well."""
    data = given(image_set())
    result = ingest(params(), 0)
    assert result["info"]["n_rejected"] == 0
    given(replace(data, rejected=(Rejected("ant/1.png", "it is empty"),)))
    full = ingest(params(), 0)["rejected"]
    assert full.to_dict("records") == [{"file": "ant/1.png", "reason": "it is empty"}]
    empty = result["rejected"]
    assert len(empty) == 0
    assert empty.dtypes.to_dict() == full.dtypes.to_dict()
    empty.to_parquet(tmp_path / "empty.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "empty.parquet"), empty)


def test_the_hash_of_the_content_repeats_and_sees_every_change(given):
    given(image_set())
    first = ingest(params(), 0)["info"]["content_hash"]
    assert ingest(params(), 0)["info"]["content_hash"] == first
    assert ingest(params(), 1)["info"]["content_hash"] != first
    assert ingest(params(test_share=0.5), 0)["info"]["content_hash"] != first
    pixel = image_set()
    pixel.images_nchw[17, 0, 3, 3] ^= 1
    label = image_set()
    label.labels[17] = (label.labels[17] + 1) % 4
    for data in (pixel, label):
        given(data)
        assert ingest(params(), 0)["info"]["content_hash"] != first


@pytest.mark.parametrize(
    ("counts", "share", "part", "name"),
    [([30, 1, 30, 30], 0.25, "test", "bee"), ([30, 30, 30, 1], 0.9, "training", "dog")],
)
def test_a_class_too_small_to_split_is_named(given, counts, share, part, name):
    given(image_set(counts))
    with pytest.raises(ValueError, match=f"class '{name}' has no {part} image after the split"):
        ingest(params(share), 0)


def test_a_class_without_an_image_is_named(given):
    given(image_set([30, 30, 30, 0]))
    with pytest.raises(ValueError, match="class 'dog' has no training image"):
        ingest(params(), 0)


def test_one_class_is_refused(given):
    given(image_set([30], ("only",)))
    with pytest.raises(ValueError, match="the source has 1 class; a classifier needs at least two"):
        ingest(params(), 0)


@pytest.mark.parametrize("names", [("cat", "dog", "cat"), ("cat", "dog", "")])
def test_classes_without_a_name_of_their_own_are_refused(given, names):
    given(image_set([30, 30, 30], names))
    with pytest.raises(ValueError, match="each needs a name of its own"):
        ingest(params(), 0)


def test_images_that_no_net_is_made_for_are_refused(given):
    large = image_set([1, 1], ("cat", "dog"))
    given(replace(large, images_nchw=np.zeros((2, 1, 1, 5000), np.uint8)))
    with pytest.raises(ValueError, match=r"shape \(1, 1, 5000\).* set ingest.source.image_size"):
        ingest(params(), 0)


@pytest.mark.parametrize("wrong", [-1, 4])
@pytest.mark.parametrize("part", ["labels", "test_labels"])
def test_labels_outside_the_class_names_are_refused(given, wrong, part):
    data = given(image_set(test_counts=[2, 3, 1, 2]))
    getattr(data, part)[3] = wrong
    with pytest.raises(ValueError, match=r"there are 4 class names; labels must be 0\.\.K-1"):
        ingest(params(), 0)


# --- trusted images from a path of their own -------------------------------------------


def write_folder(folder, classes, size=6, seed=0):
    """PNG files of noise, a folder a class; gives them back by class."""
    generator = np.random.default_rng(seed)
    made = {}
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        made[name] = generator.integers(0, 256, (count, size, size), dtype=np.uint8)
        for number, image in enumerate(made[name]):
            Image.fromarray(image).save(folder / name / f"{number:03}.png")
    return made


def folder_params(folder, trusted, **more):
    source = {"name": "image_folder", "path": str(folder), "image_mode": "L", **more}
    return IngestParams(
        source=source, test_share=0.25, trusted_share=0.5, trusted_path=str(trusted)
    )


def test_trusted_images_join_the_training_set_and_are_the_only_trusted_ones(tmp_path):
    write_folder(tmp_path / "all", {"ant": 8, "bee": 12, "cow": 4})
    known = write_folder(tmp_path / "known", {"cow": 3, "ant": 2}, seed=1)
    result = ingest(folder_params(tmp_path / "all", tmp_path / "known"), 0)
    ledger, images = result["ledger"], result["images"]
    assert len(images) == len(ledger) == 6 + 9 + 3 + 5
    assert ledger["trusted"].tolist() == [False] * 18 + [True] * 5
    assert ledger["label"].tolist()[18:] == [0, 0, 2, 2, 2]
    np.testing.assert_array_equal(images[18:, 0], np.concatenate([known["ant"], known["cow"]]))
    assert ledger["sample_id"].is_unique
    files = result["files"]
    assert files["sample_id"].tolist() == ledger["sample_id"].tolist()
    for row, file in zip(images[:18], files["file"][:18], strict=True):
        np.testing.assert_array_equal(row[0], np.asarray(Image.open(tmp_path / "all" / file)))
    for row, file in zip(images[18:], files["file"][18:], strict=True):
        np.testing.assert_array_equal(row[0], np.asarray(Image.open(file)))
    assert result["info"]["n_trusted"] == 5
    assert result["info"]["n_train"] == 23
    assert len(result["test_images"]) == 2 + 3 + 1
    plain = folder_params(tmp_path / "all", "x").model_copy(
        update={"trusted_path": None, "trusted_share": 0.0}
    )
    alone = ingest(plain, 0)
    np.testing.assert_array_equal(images[:18], alone["images"])
    assert result["info"]["content_hash"] != alone["info"]["content_hash"]


def test_both_parts_at_the_trusted_path_are_trusted(tmp_path):
    write_folder(tmp_path / "all", {"ant": 8, "bee": 12})
    write_folder(tmp_path / "known" / "train", {"ant": 2, "bee": 1}, seed=1)
    write_folder(tmp_path / "known" / "test", {"bee": 3}, seed=2)
    ledger = ingest(folder_params(tmp_path / "all", tmp_path / "known"), 0)["ledger"]
    assert ledger["label"][ledger["trusted"]].tolist() == [0, 0, 1, 1, 1, 1]


def test_images_without_files_are_told_by_their_row_in_the_source(given):
    data = given(image_set())
    result = ingest(params(), 0)
    for image, file in zip(result["images"], result["files"]["file"], strict=True):
        assert rows_of(data.images_nchw)[int(file.removeprefix("image "))] == image[0, 0, 0]


def test_damaged_trusted_files_are_listed_with_their_folder(tmp_path):
    write_folder(tmp_path / "all", {"ant": 8, "bee": 12})
    write_folder(tmp_path / "known", {"ant": 2}, seed=1)
    (tmp_path / "known" / "ant" / "bad.png").write_bytes(b"x")
    result = ingest(folder_params(tmp_path / "all", tmp_path / "known"), 0)
    assert result["rejected"]["file"].tolist() == [f"{tmp_path / 'known'}/ant/bad.png"]
    assert result["info"]["n_rejected"] == 1
    assert result["info"]["n_trusted"] == 2


def test_trusted_images_of_other_classes_are_refused(tmp_path):
    write_folder(tmp_path / "all", {"ant": 8, "bee": 12})
    write_folder(tmp_path / "known", {"ant": 2, "wasp": 2})
    with pytest.raises(ValueError, match="have classes that the data has not: wasp; its classes"):
        ingest(folder_params(tmp_path / "all", tmp_path / "known"), 0)


def test_trusted_images_of_another_size_are_refused_unless_one_is_set(tmp_path):
    write_folder(tmp_path / "all", {"ant": 8, "bee": 12})
    write_folder(tmp_path / "known", {"ant": 2, "bee": 2}, size=9)
    with pytest.raises(ValueError, match=r"set ingest\.source\.image_size"):
        ingest(folder_params(tmp_path / "all", tmp_path / "known"), 0)
    params = folder_params(tmp_path / "all", tmp_path / "known", image_size=5)
    assert ingest(params, 0)["images"].shape[1:] == (1, 5, 5)


def test_a_trusted_path_that_is_not_there_is_refused(tmp_path):
    write_folder(tmp_path / "all", {"ant": 8, "bee": 12})
    with pytest.raises(ValueError, match="nowhere cannot be read"):
        ingest(folder_params(tmp_path / "all", tmp_path / "nowhere"), 0)


def test_a_source_without_a_path_takes_no_trusted_path():
    with pytest.raises(ValidationError, match="source 'digits' reads no path"):
        IngestParams(source={"name": "digits"}, test_share=0.2, trusted_share=0, trusted_path="x")


def test_what_a_source_notes_is_told_and_kept(given, caplog):
    given(replace(image_set(), notes=("valid/ is left out",)))
    assert ingest(params(), 0)["info"]["notes"] == ["valid/ is left out"]
    assert "valid/ is left out" in caplog.text


def test_one_class_is_refused_with_what_the_source_notes(given):
    given(replace(image_set([30], ("all",)), notes=("the folder inside looks like the data",)))
    with pytest.raises(ValueError, match=r"at least two\. The folder inside looks like"):
        ingest(params(), 0)


def test_a_class_that_the_given_test_part_has_not_is_no_matter_of_a_split(given):
    given(image_set(test_counts=[3, 3, 3, 0]))
    with pytest.raises(ValueError, match="'dog' has no test image; add images of it, or") as raised:
        ingest(params(), 0)
    assert "split" not in str(raised.value)


def test_held_out_pictures_that_are_trained_on_are_told(given):
    data = image_set(test_counts=[3, 3, 3, 3])
    given(data)
    assert ingest(params(), 0)["info"]["notes"] == []
    data.test_images_nchw[0] = data.images_nchw[0]
    given(replace(data, test_labels=(data.test_labels + (data.labels[0] + 1)) % 4))
    (note,) = ingest(params(), 0)["info"]["notes"]
    assert note.startswith("1 of 12 held-out pictures are there in the training part")
