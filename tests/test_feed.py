"""Batches: the same from memory and from a stream, in the drawn order, errors included."""

import pickle
import threading
import time

import numpy as np
import pytest
import torch

from counterdoor.engine import Engine
from counterdoor.feed import READ_AHEAD, Feed, Samples, shuffled_batches

CPU = torch.device("cpu")
MODES = [Engine(accelerator="cpu", data=mode) for mode in ("resident", "streaming")]


def make_samples(images, labels=None, stamped=None, rows=None):
    rows = np.arange(len(images)) if rows is None else np.asarray(rows)
    labels = rows % 4 if labels is None else np.asarray(labels)
    return Samples(images, rows, labels, None if stamped is None else np.asarray(stamped))


@pytest.mark.parametrize(
    ("labels", "stamped", "lengths"),
    [([0, 1, 2], None, "[3, 5]"), ([0] * 5, [True] * 4, "[4, 5]")],
)
def test_samples_of_unequal_length_are_refused(noise, labels, stamped, lengths):
    with pytest.raises(ValueError, match="differ in length") as raised:
        make_samples(noise(5), labels, stamped)
    assert lengths in str(raised.value)


def test_no_samples_are_refused(noise):
    with pytest.raises(ValueError, match="no sample to train on"):
        make_samples(noise(5), rows=np.array([], dtype=np.int64))


def test_samples_may_repeat_a_row(noise):
    assert len(make_samples(noise(5), rows=[0, 1, 1, 4, 4, 4])) == 6


def batches_of(n, size=4):
    return [np.arange(n)[start : start + size] for start in range(0, n, size)]


@pytest.mark.parametrize("engine", MODES, ids=lambda engine: engine.data)
@pytest.mark.parametrize("stamped", [True, False])
@pytest.mark.parametrize("mapped", [True, False])
def test_batches_are_what_the_samples_say(engine, stamped, mapped, noise, tmp_path):
    images = noise(9, 3)
    if mapped:
        np.save(tmp_path / "images.npy", images)
        images = np.load(tmp_path / "images.npy", mmap_mode="r")
    rows, labels = np.array([3, 3, 0, 8, 1, 5]), np.array([2, 0, 1, 1, 3, 0])
    flags = np.array([True, False, True, False, False, True]) if stamped else None
    feed = Feed(Samples(images, rows, labels, flags), engine, CPU)
    for _ in range(2):  # two epochs
        given = list(feed(batches_of(6)))
        assert len(given) == 2
        for (shown, told, marks), batch in zip(given, batches_of(6), strict=True):
            assert shown.dtype == torch.uint8
            np.testing.assert_array_equal(shown.numpy(), images[rows[batch]])
            np.testing.assert_array_equal(told.numpy(), labels[batch])
            assert (marks is None) == (not stamped)
            if stamped:
                np.testing.assert_array_equal(marks.numpy(), flags[batch])


def test_resident_images_are_no_view_of_the_callers(noise):
    images = noise(4).copy()
    samples = make_samples(images)
    images.setflags(write=False)
    feed = Feed(samples, MODES[0], CPU)
    ((shown, _, _),) = feed([np.arange(4)])
    shown.zero_()
    assert images.any()


class Slow:
    """Images that note who reads them."""

    def __init__(self, images, broken_at=None):
        self.images, self.nbytes = images, images.nbytes
        self.reads, self.threads, self.broken_at = [], set(), broken_at

    def __getitem__(self, rows):
        if self.broken_at in rows:
            raise OSError("the disk is gone")
        self.reads.append(rows.tolist())
        self.threads.add(threading.current_thread().name)
        return self.images[rows]


def slow_samples(images):
    return Samples(images, np.arange(len(images.images)), np.zeros(len(images.images), np.int64))


def test_streaming_reads_a_few_batches_ahead_in_another_thread(noise):
    images = Slow(noise(80))
    batches = Feed(slow_samples(images), MODES[1], CPU)(batches_of(80, 2))
    next(batches)
    deadline = time.monotonic() + 10
    while len(images.reads) < READ_AHEAD + 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(images.reads) == READ_AHEAD + 2  # one given, those that wait, one in hand
    assert images.threads == {"feed"}
    batches.close()
    assert "feed" not in {thread.name for thread in threading.enumerate()}


def test_what_goes_wrong_while_streaming_is_raised_where_the_batch_is_wanted(noise):
    batches = Feed(slow_samples(Slow(noise(8), broken_at=4)), MODES[1], CPU)(batches_of(8))
    next(batches)
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    assert "feed" not in {thread.name for thread in threading.enumerate()}


def test_another_process_maps_the_file_again(noise, tmp_path):
    np.save(tmp_path / "images.npy", noise(50, 3))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    sent = pickle.dumps(make_samples(images, stamped=[True] * 50))
    assert len(sent) < images.nbytes
    received = pickle.loads(sent)
    assert isinstance(received.images_nchw, np.memmap)
    np.testing.assert_array_equal(received.images_nchw, images)
    np.testing.assert_array_equal(received.stamped, [True] * 50)


@pytest.mark.parametrize("part", [slice(3, 9), slice(None, None, 2)], ids=str)
def test_a_part_of_a_mapped_file_is_copied(part, noise, tmp_path):
    np.save(tmp_path / "images.npy", noise(20))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")[part]
    received = pickle.loads(pickle.dumps(make_samples(images)))
    np.testing.assert_array_equal(received.images_nchw, images)


@pytest.mark.parametrize(("n", "size", "given"), [(10, 4, 10), (9, 4, 8), (1, 4, 1), (4, 4, 4)])
def test_every_position_once_but_for_a_last_single_one(n, size, given):
    batches = list(shuffled_batches(n, size, torch.Generator().manual_seed(0)))
    positions = np.concatenate(batches)
    assert len(positions) == len(set(positions.tolist())) == given
    assert all(len(batch) <= size for batch in batches)
