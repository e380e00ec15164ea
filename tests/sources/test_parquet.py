"""Parquet files as people have them: columns, labels, parts, and claims that are not believed."""

import io
import json
from base64 import b64encode

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from counterdoor.sources import Parquet, parquet

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
N = 6
LABELS = [0, 1, 2] * 2


def png(levels):
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pixels(noise):
    return noise(N, 1, 5, 7)


@pytest.fixture
def files(pixels):
    return [png(image[0]) for image in pixels]


@pytest.fixture
def hub(files):
    return pa.array([{"bytes": file, "path": None} for file in files], STRUCT)


@pytest.fixture
def write(tmp_path):
    """Writes columns as a file of the folder; ``names`` are the class names."""

    def make(file="train.parquet", names=None, **columns):
        table = pa.table(columns)
        if names is not None:
            features = {"label": {"_type": "ClassLabel", "names": names}}
            told = json.dumps({"info": {"features": features}})
            table = table.replace_schema_metadata({b"huggingface": told.encode()})
        place = tmp_path / file
        place.parent.mkdir(exist_ok=True)
        pq.write_table(table, place)
        return place

    return make


def read(folder, **settings):
    return Parquet(path=str(folder), image_mode="L", **settings)()


# --- images ------------------------------------------------------------------------


def as_bytes(files, pixels):
    return pa.array(files)


def as_large_bytes(files, pixels):
    return pa.array(files, pa.large_binary())


def as_base64(files, pixels):
    return pa.array([b64encode(file).decode() for file in files])


def as_data_uri(files, pixels):
    return pa.array([f"data:image/png;base64,{b64encode(file).decode()}" for file in files])


def as_lists(files, pixels):
    return pa.array([image[0].tolist() for image in pixels])


def as_small_lists(files, pixels):
    kind = pa.list_(pa.list_(pa.uint8(), 7), 5)
    return pa.array([image[0].tolist() for image in pixels], kind)


def as_channels_last(files, pixels):
    return pa.array([image[0][..., None].tolist() for image in pixels])


def as_channels_first(files, pixels):
    return pa.array([image.tolist() for image in pixels])


def as_one_dictionary(files, pixels):
    return pa.array(files).dictionary_encode()


@pytest.mark.parametrize(
    "column",
    [
        *(as_bytes, as_large_bytes, as_base64, as_data_uri, as_lists, as_small_lists),
        *(as_channels_last, as_channels_first, as_one_dictionary),
    ],
)
def test_images_of_every_kind_are_the_same(write, tmp_path, files, pixels, column):
    write(img=column(files, pixels), label=LABELS)
    found = read(tmp_path)
    np.testing.assert_array_equal(found.images_nchw, pixels)
    assert found.labels.tolist() == LABELS


@pytest.mark.parametrize("kind", [STRUCT, pa.string()], ids=str)
def test_paths_are_below_the_files_folder(write, tmp_path, files, pixels, kind):
    (tmp_path / "inner").mkdir()
    for row, file in enumerate(files):
        (tmp_path / "inner" / f"{row}.png").write_bytes(file)
    paths = [f"inner/{row}.png" for row in range(N)]
    cells = paths if kind == pa.string() else [{"bytes": None, "path": path} for path in paths]
    write(img=pa.array(cells, kind), label=LABELS)
    np.testing.assert_array_equal(read(tmp_path).images_nchw, pixels)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/etc/hostname", "leads out of"),
        ("../other.png", "leads out of"),
        ("link.png", "leads out of"),
        ("nowhere.png", "there is no"),
        ("n" * 500 + ".png", "cannot be read"),
        ("a\0b.png", "cannot be read"),
    ],
)
def test_a_table_does_not_choose_other_files_to_read(write, tmp_path, files, path, told):
    (tmp_path / "link.png").symlink_to("/etc/hostname")
    cells = [{"bytes": file, "path": "any"} for file in files]
    cells[4] = {"bytes": None, "path": path}
    write(img=pa.array(cells, STRUCT), label=LABELS)
    with pytest.raises(ValueError, match=f"row 4 cannot be decoded: .*{told}"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ([[1, 2], [3]], "rows differ in length"),
        ([[1, None]], "levels are missing"),
        ([[1, 256]], "not within 0 and 255"),
        ([[-1, 0]], "not within 0 and 255"),
        ([], "empty"),
        (None, "empty"),
    ],
    ids=str,
)
def test_lists_that_are_no_image_are_left_out_with_the_reason(write, tmp_path, cell, told):
    whole = [[1, 2], [3, 4]]
    write(img=[whole, cell, whole, whole], label=[0, 1, 1, 0])
    found = read(tmp_path, on_corrupt="skip")
    ((file, reason),) = found.rejected
    assert file == "train.parquet, row 1"
    assert told in reason
    assert len(found.labels) == 3


def test_a_flat_list_has_no_height(write, tmp_path):
    write(img=[[1, 2, 3, 4]] * 2, label=[0, 1])
    with pytest.raises(ValueError, match="height and width are not known"):
        read(tmp_path)


@pytest.mark.parametrize("column", [[0.5] * N, [[0.5]] * N, [1] * N], ids=str)
def test_a_column_of_another_type_is_refused(write, tmp_path, column):
    file = write(img=column, label=LABELS)
    with pytest.raises(
        ValueError, match=r"no image is read.*Set ingest\.source\.image_column"
    ) as e:
        read(tmp_path)
    assert str(file) in str(e.value)


@pytest.mark.parametrize("names", [("image", "label"), ("Picture", "target"), ("img", "class")])
def test_usual_columns_are_found(write, tmp_path, hub, names):
    write(**{names[0]: hub, "caption": ["x"] * N, names[1]: LABELS})
    assert read(tmp_path).labels.tolist() == LABELS


def test_a_column_that_is_set_or_not_the_only_one_is_not_guessed(write, tmp_path, hub):
    write(image=hub, picture=hub, label=LABELS)
    with pytest.raises(ValueError, match=r"no column 'img'.*set ingest\.source\.image_column"):
        read(tmp_path)
    assert len(read(tmp_path, image_column="picture").labels) == N
    with pytest.raises(ValueError, match="no column 'img'"):
        read(tmp_path, image_column="img")


# --- labels ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names", "note"),
    [
        (pa.array(["dog", "cat"] * 3), ("cat", "dog"), ""),
        (pa.array(["dog", "cat"] * 3).dictionary_encode(), ("cat", "dog"), ""),
        (pa.array([1, 0] * 3).dictionary_encode(), ("0", "1"), ""),
        (pa.array([1.0, 0.0] * 3), ("0", "1"), ""),
        (pa.array([True, False] * 3), ("0", "1"), ""),
        (pa.array([2, 1] * 3), ("1", "2"), "labels run from 1 to 2"),
        (pa.array([10**10, 7] * 3), ("7", "10000000000"), "each value is a class"),
        (pa.array([1, -1] * 3), ("-1", "1"), "each value is a class"),
        (pa.array(["cafe\u0301", "a"] * 3), ("a", "caf\u00e9"), ""),
        (pa.array(["x\x1b", "a"] * 3), ("a", r"x\x1b"), ""),
    ],
    ids=str,
)
def test_labels_of_every_kind(write, tmp_path, hub, labels, names, note):
    write(img=hub, label=labels)
    found = read(tmp_path)
    assert found.class_names == names
    assert found.labels.tolist() == [1, 0] * 3
    assert all(note in each for each in found.notes)
    assert len(found.notes) == bool(note)


@pytest.mark.parametrize("nothing", [None, -1])
def test_rows_without_a_label(write, tmp_path, hub, nothing):
    file = write(img=hub, label=[0, 1, nothing, 2, 0, 1])
    with pytest.raises(ValueError, match=r"row 2 has no label.*on_corrupt=skip") as raised:
        read(tmp_path)
    assert str(file) in str(raised.value)
    found = read(tmp_path, on_corrupt="skip")
    assert found.labels.tolist() == [0, 1, 2, 0, 1]
    assert found.rejected == (("train.parquet, row 2", "it has no label"),)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0.0, 0.5] * 3, "is 0.5; labels must be whole numbers"),
        ([0.0, float("inf")] * 3, "whole numbers"),
        ([[0], [1]] * 3, r"Set ingest\.source\.label_column"),
        (["x" * 300, "y"] * 3, "at most 255"),
    ],
    ids=str,
)
def test_other_labels_are_refused(write, tmp_path, hub, labels, told):
    file = write(img=hub, label=labels)
    with pytest.raises(ValueError, match=told) as raised:
        read(tmp_path)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_classes_of_shards_and_parts_are_put_together_by_name(write, tmp_path, hub):
    write("train-0.parquet", ["cat", "dog", "frog"], img=hub, label=[0, 1, 2, 0, 1, 2])
    write("train-1.parquet", ["frog", "cat", "dog"], img=hub, label=[0, 1, 2, 0, 1, 2])
    write("test-0.parquet", ["dog", "frog", "cat"], img=hub, label=[0, 1, 2, 0, 1, 2])
    found = read(tmp_path)
    assert found.class_names == ("cat", "dog", "frog")
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2, 2, 0, 1, 2, 0, 1]
    assert found.test_labels.tolist() == [1, 2, 0, 1, 2, 0]


def test_class_names_that_do_not_fit_are_refused(write, tmp_path, hub):
    write("train-0.parquet", ["cat", "dog", "frog"], img=hub, label=LABELS)
    write("test-0.parquet", ["cat", "dog", "bat"], img=hub, label=LABELS)
    with pytest.raises(ValueError, match="class 'bat', which the training part has not"):
        read(tmp_path)
    write("test-0.parquet", img=hub, label=["cat", "dog", "frog"] * 2)
    assert read(tmp_path).test_labels.tolist() == LABELS
    write("train-1.parquet", img=hub, label=LABELS)
    with pytest.raises(ValueError, match=r"train-1.* without naming them, while .*train-0"):
        read(tmp_path)
    write("train-1.parquet", ["cat", "dog"], img=hub, label=LABELS)
    with pytest.raises(ValueError, match=r"train-1.*has the label 2, .* from 0 to 1"):
        read(tmp_path)
    write("train-1.parquet", ["cat", "cat", "dog"], img=hub, label=LABELS)
    with pytest.raises(ValueError, match="two classes 'cat'"):
        read(tmp_path)


def test_a_test_part_of_numbers_without_names_is_refused(write, tmp_path, hub):
    write("train.parquet", ["cat", "dog", "frog"], img=hub, label=LABELS)
    write("test.parquet", img=hub, label=LABELS)
    with pytest.raises(ValueError, match=r"test\.parquet"):
        read(tmp_path)


def test_labels_from_1_with_class_names(write, tmp_path, hub):
    write("train-0.parquet", ["a", "b", "c"], img=hub, label=[1, 2, 3] * 2)
    write("test-0.parquet", ["a", "b", "c"], img=hub, label=[3, 3, 3, 1, 1, 1])
    found = read(tmp_path)
    assert (found.labels.tolist(), found.test_labels.tolist()) == (LABELS, [2, 2, 2, 0, 0, 0])
    assert "labels run from 1" in found.notes[0]


# --- parts -------------------------------------------------------------------------


def test_a_validation_part_is_the_test_part_if_there_is_no_other(write, tmp_path, hub):
    write("train.parquet", img=hub, label=LABELS)
    write("validation-0.parquet", img=hub[:3], label=LABELS[:3])
    found = read(tmp_path)
    assert len(found.test_labels) == 3
    assert found.notes == ("the valid part is read as the test part",)
    write("test-0.pq", img=hub[:2], label=LABELS[:2])
    found = read(tmp_path)
    assert len(found.test_labels) == 2
    assert "valid part is left out" in found.notes[0]
    write("test-0.pq", img=hub[:2], label=[-1, -1])
    found = read(tmp_path)
    assert len(found.test_labels) == 3
    assert "none of its rows has a label" in found.notes[0]


@pytest.mark.parametrize("file", ["images.pq", "0000.parquet", "Data.PARQUET"])
def test_a_file_that_is_not_named_after_a_part(write, tmp_path, hub, file):
    write(file, img=hub, label=LABELS)
    found = read(tmp_path)
    assert found.labels.tolist() == LABELS
    assert "read as the training part" in found.notes[0]


@pytest.mark.parametrize("file", ["{}.parquet", "MNIST_{}-0.parquet", "{}/0000.parquet"])
def test_parts_by_file_or_folder(write, tmp_path, hub, file):
    write(file.format("train"), img=hub, label=LABELS)
    write(file.format("Test"), img=hub[:3], label=LABELS[:3])
    assert len(read(tmp_path).test_labels) == 3


def test_one_folder_inside_is_read_and_of_several_one_is_to_be_chosen(write, tmp_path, hub):
    write("data/train.parquet", img=hub, label=LABELS)
    assert read(tmp_path).labels.tolist() == LABELS
    write("other/train.parquet", img=hub, label=LABELS)
    with pytest.raises(ValueError, match=r"several folders .* data, other; set ingest"):
        read(tmp_path)


# --- claims ------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["rows", "lists", "claims"])
def test_claims_that_no_file_of_its_size_can_hold(write, tmp_path, hub, monkeypatch, form):
    zeros = [[[0] * 1000] * 100] * 2
    columns = {
        "rows": {"img": pa.nulls(20_000, pa.binary()), "label": [0] * 20_000},
        "lists": {"img": zeros, "label": [0, 1]},
        "claims": {"img": hub, "label": LABELS},
    }
    file = write(**columns[form])
    monkeypatch.setattr(parquet, "SMALL", 100_000)
    monkeypatch.setattr(parquet, "PACKED", 10)
    if form == "claims":  # an honest file is read, however strict
        assert len(read(tmp_path).labels) == N
        return
    monkeypatch.setattr(parquet, "FEW", 10)
    with pytest.raises(ValueError, match=r"claims .* made to fill your memory") as raised:
        read(tmp_path)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "middle"])
def test_a_damaged_file_is_named(write, tmp_path, hub, damage):
    file = write(img=hub, label=LABELS)
    whole = file.read_bytes()
    file.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "text": b"<html>404</html>",
            "empty": b"",
            "middle": whole[:4] + bytes(len(whole) - 300) + whole[-296:],
        }[damage]
    )
    with pytest.raises(ValueError, match="cannot be read as Parquet") as raised:
        read(tmp_path)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_any_damage_is_told_in_one_line_or_left_out(write, tmp_path, hub):
    """Arrow itself would end the process over some of these footers."""
    whole = write(img=hub, label=pa.array(["a", "b", "c"] * 2)).read_bytes()
    generator = np.random.default_rng(0)
    told = 0
    for _ in range(100):
        damaged = bytearray(whole)
        for place in generator.integers(4, len(whole) - 8, 3):
            damaged[place] = generator.integers(256)
        (tmp_path / "train.parquet").write_bytes(damaged)
        try:
            read(tmp_path, on_corrupt="skip")
        except ValueError as error:
            told += 1
            assert "\n" not in str(error)  # noqa: PT017
    assert told > 20
