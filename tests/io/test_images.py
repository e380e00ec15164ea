"""Image arrays on disk: mapped, read-only, uint8 and nothing else."""

import mmap
import pickle

import numpy as np
import pytest
from kedro.io import DatasetError, Version

from counterdoor.io import ImagesDataset

SAVED = "2024-01-01T00.00.01.000Z"


@pytest.fixture
def dataset(tmp_path):
    return ImagesDataset(filepath=str(tmp_path / "images.npy"), version=Version(None, SAVED))


@pytest.fixture
def put(tmp_path):
    """Puts bytes where a data set without versions, and so without checksums, looks."""

    def write(content):
        with (tmp_path / "put.npy").open("wb") as file:
            content(file)
        return ImagesDataset(filepath=str(tmp_path / "put.npy"))

    return write


@pytest.mark.parametrize("shape", [(5, 1, 28, 28), (3, 3, 6, 5), (1, 4, 1, 1)])
def test_round_trip(dataset, shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    dataset.save(images)
    np.testing.assert_array_equal(dataset.load(), images, strict=True)


@pytest.mark.parametrize(
    "view",
    [
        lambda images: images[::2],
        lambda images: images[:, :, ::-1],
        lambda images: images.transpose(0, 1, 3, 2),
        np.asfortranarray,
    ],
    ids=["every other", "upside down", "transposed", "fortran order"],
)
def test_views_are_saved_as_they_look(dataset, noise, view):
    images = view(noise(6, 3, 8, 9))
    dataset.save(images)
    np.testing.assert_array_equal(dataset.load(), images, strict=True)


def test_loaded_images_are_mapped_not_read(dataset, noise):
    dataset.save(noise(6))
    loaded = dataset.load()
    assert isinstance(loaded, np.memmap)
    assert isinstance(loaded._mmap, mmap.mmap)


def test_loaded_images_are_read_only(dataset, noise):
    dataset.save(noise(6))
    loaded = dataset.load()
    assert not loaded.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        loaded[0] = 0
    np.testing.assert_array_equal(dataset.load(), noise(6))


def test_a_loaded_map_can_be_saved_again(dataset, noise, tmp_path):
    dataset.save(noise(6))
    again = ImagesDataset(filepath=str(tmp_path / "again.npy"), version=Version(None, SAVED))
    again.save(dataset.load())
    np.testing.assert_array_equal(again.load(), noise(6))


BAD = {
    "float": np.zeros((2, 1, 4, 4), dtype=np.float32),
    "int64": np.zeros((2, 1, 4, 4), dtype=np.int64),
    "bool": np.zeros((2, 1, 4, 4), dtype=bool),
    "one image": np.zeros((1, 4, 4), dtype=np.uint8),
    "no channel": np.zeros((2, 4, 4), dtype=np.uint8),
    "too deep": np.zeros((1, 2, 1, 4, 4), dtype=np.uint8),
}


@pytest.mark.parametrize("name", BAD)
def test_other_arrays_are_not_saved(dataset, name):
    with pytest.raises(DatasetError, match=r"must be uint8 of shape \(N, C, H, W\)") as caught:
        dataset.save(BAD[name])
    assert str(BAD[name].dtype) in str(caught.value)
    assert str(BAD[name].shape) in str(caught.value)
    assert not dataset.exists()


@pytest.mark.parametrize("name", BAD)
def test_other_arrays_are_not_loaded(put, name):
    dataset = put(lambda file: np.save(file, BAD[name]))
    with pytest.raises(DatasetError, match=r"not uint8 of shape \(N, C, H, W\)") as caught:
        dataset.load()
    assert str(BAD[name].shape) in str(caught.value)


class Trap:
    """Unpickling this raises the flag."""

    sprung = False

    def __reduce__(self):
        return Trap.spring, ()

    @staticmethod
    def spring():
        Trap.sprung = True


def test_the_trap_works():
    pickle.loads(pickle.dumps(Trap()))
    assert Trap.sprung
    Trap.sprung = False


@pytest.mark.parametrize(
    "content",
    [
        lambda file: np.save(file, np.array([[[[Trap()]]]], dtype=object), allow_pickle=True),
        lambda file: pickle.dump(Trap(), file),
        lambda file: np.savez(file, images=np.zeros((2, 1, 4, 4), dtype=np.uint8)),
    ],
    ids=["object array", "pickle", "archive"],
)
def test_pickles_and_archives_are_refused_and_nothing_is_run(put, content):
    dataset = put(content)
    with pytest.raises(DatasetError, match="cannot be read"):
        dataset.load()
    assert not Trap.sprung


def test_object_arrays_are_not_saved(dataset):
    with pytest.raises(DatasetError, match="not object"):
        dataset.save(np.array([[[[Trap()]]]], dtype=object))
    assert not dataset.exists()
