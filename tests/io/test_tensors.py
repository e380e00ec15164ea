"""Tensors on disk: none or many, the same after a round trip, and read again as a cache."""

import os

import numpy as np
import pytest
import torch
from kedro.io import DatasetError, Version

from counterdoor.io import CachedTensorsDataset, TensorsDataset

SAVED = "2024-01-01T00.00.01.000Z"
TENSORS = {
    "weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "pattern": torch.arange(12, dtype=torch.uint8).reshape(3, 4).T,
    "level": torch.tensor(0.5, dtype=torch.float64),
    "none": torch.empty(0, 3, dtype=torch.int64),
}


def dataset(tmp_path, kind=TensorsDataset, version=SAVED):
    return kind(filepath=str(tmp_path / "x.safetensors"), version=Version(None, version))


@pytest.mark.parametrize("tensors", [{}, TENSORS], ids=["none", "several"])
def test_round_trip(tmp_path, tensors):
    dataset(tmp_path).save(tensors)
    loaded = dataset(tmp_path).load()
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_tensors_that_share_memory_and_need_gradients(tmp_path):
    whole = torch.arange(8.0)
    tensors = {"a": whole[:4], "b": whole[2:], "c": whole.clone().requires_grad_()}
    dataset(tmp_path).save(tensors)
    loaded = dataset(tmp_path).load()
    assert all(torch.equal(loaded[name], tensors[name].detach()) for name in tensors)
    assert not any(tensor.requires_grad for tensor in loaded.values())


def test_what_is_no_tensor_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(DatasetError, match="'a' is a ndarray, not a tensor"):
        dataset(tmp_path).save({"a": np.zeros(3)})
    assert not list(tmp_path.iterdir())


def test_a_cache_is_none_until_there_is_a_version_and_then_the_newest(tmp_path):
    cache = dataset(tmp_path, CachedTensorsDataset)
    assert cache.load() is None
    assert not cache.exists()
    dataset(tmp_path).save({"a": torch.tensor(1)})
    assert int(cache.load()["a"]) == 1
    dataset(tmp_path, version="2024-01-01T00.00.02.000Z").save({"a": torch.tensor(2)})
    assert int(dataset(tmp_path, CachedTensorsDataset).load()["a"]) == 2


def test_a_damaged_cache_is_told(tmp_path):
    dataset(tmp_path).save(TENSORS)
    (file,) = tmp_path.glob("*/*/x.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(DatasetError, match="damaged or incomplete: delete the folder"):
        dataset(tmp_path, CachedTensorsDataset).load()


def test_a_cache_cannot_be_saved_to(tmp_path):
    with pytest.raises(DatasetError, match="save to the data set it caches"):
        dataset(tmp_path, CachedTensorsDataset).save({})
    assert not list(tmp_path.iterdir())


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    file = tmp_path / "x.safetensors" / SAVED / "x.safetensors"
    file.parent.mkdir(parents=True)
    os.mkfifo(file)
    with pytest.raises(DatasetError, match="it is a pipe, not a file"):
        dataset(tmp_path).load()
