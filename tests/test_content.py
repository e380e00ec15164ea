"""The hash of what something was made from, and the tensors that carry it."""

import hashlib
import tracemalloc

import numpy as np
import pytest
import torch

from counterdoor import content
from counterdoor.content import content_hash, is_tied, tied
from counterdoor.io import TensorsDataset


def test_content_hash_against_known_values():
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    first = content_hash(array)
    assert first == hashlib.sha256(b"uint8(3, 4)" + bytes(range(12))).hexdigest()
    others = [
        array.reshape(4, 3),
        array.astype(np.int8),
        array[::-1],
        array + np.uint8(1),
        array[:2],
    ]
    hashes = {first, *(content_hash(np.ascontiguousarray(other)) for other in others)}
    assert len(hashes) == len(others) + 1
    assert content_hash(array, array) != first
    assert content_hash(array[:1], array[1:]) != content_hash(array[:2], array[2:])
    assert content_hash(np.array(7)) != content_hash(np.array(8))
    assert content_hash(np.zeros((0, 3))) != content_hash(np.zeros((0, 4)))


@pytest.mark.parametrize("block", [1, 5, 12, 24, 1 << 24])
def test_content_hash_depends_neither_on_the_memory_layout_nor_on_blocks(
    tmp_path, monkeypatch, block
):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    expected = content_hash(array)
    wide = np.zeros((2, 3, 8), dtype=np.uint8)
    wide[:, :, ::2] = array
    np.save(tmp_path / "a.npy", array)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    monkeypatch.setattr(content, "BLOCK", block)
    for same in (array, np.asfortranarray(array), wide[:, :, ::2], mapped):
        assert content_hash(same) == expected


def test_a_long_array_is_not_copied_as_a_whole():
    array = np.zeros((64, 1 << 20), dtype=np.uint8).T
    tracemalloc.start()
    content_hash(array)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * content.BLOCK < array.nbytes


def test_tensors_are_tied_to_one_content_through_a_file(tmp_path):
    one, other = content_hash(np.zeros(3)), content_hash(np.ones(3))
    made = tied({"a": torch.ones(2)}, one)
    dataset = TensorsDataset(filepath=str(tmp_path / "a.safetensors"))
    dataset.save(made)
    for tensors in (made, dataset.load()):
        assert is_tied(tensors, one)
        assert not is_tied(tensors, other)
        assert torch.equal(tensors["a"], torch.ones(2))
    assert not is_tied(tied(made, other), one)
    assert not is_tied({"a": torch.ones(2)}, one)
    assert not is_tied(None, one)
    damaged = dict(made) | {"made_from": torch.tensor([1.5, -2.0])}
    assert not is_tied(damaged, one)
