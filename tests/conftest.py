"""Small shared fixtures. Real images where learning is tested, noise where arithmetic is."""

import hashlib
import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from counterdoor import engine
from counterdoor.component import Component
from counterdoor.ledger import new_ledger
from counterdoor.sources import Cifar10, Digits, ImageSet

torch.set_num_threads(1)  # nets this small are slower on several, above all on busy cores


@pytest.fixture(autouse=True)
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared with a slow version is computed in fp32, whatever the processor has."""
    monkeypatch.setattr(engine, "multiplies_bf16", lambda device: False)


@pytest.fixture(scope="session")
def all_digits() -> ImageSet:
    """The 5,000 real digits of the bundled source, read-only."""
    images = Digits()()
    images.images_nchw.setflags(write=False)
    images.labels.setflags(write=False)
    return images


@pytest.fixture(scope="session")
def digits(all_digits: ImageSet) -> ImageSet:
    """400 real digits, 40 of each class, in mixed order, read-only."""
    generator = np.random.default_rng(0)
    rows = generator.permutation(
        np.concatenate([np.flatnonzero(all_digits.labels == label)[:40] for label in range(10)])
    )
    images, labels = all_digits.images_nchw[rows], all_digits.labels[rows]
    images.setflags(write=False)
    labels.setflags(write=False)
    return ImageSet(images, labels, all_digits.class_names)


@pytest.fixture(scope="session")
def more_digits(all_digits: ImageSet) -> ImageSet:
    """200 other real digits, 20 of each class, read-only."""
    rows = np.concatenate([np.flatnonzero(all_digits.labels == i)[40:60] for i in range(10)])
    images, labels = all_digits.images_nchw[rows], all_digits.labels[rows]
    images.setflags(write=False)
    labels.setflags(write=False)
    return ImageSet(images, labels, all_digits.class_names)


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    """Makes read-only uint8 noise, shape (n, channels, height, width)."""

    def make(
        n: int = 8, channels: int = 1, height: int = 12, width: int = 12, seed: int = 0
    ) -> np.ndarray:
        generator = np.random.default_rng(seed)
        images = generator.integers(0, 256, (n, channels, height, width), dtype=np.uint8)
        images.setflags(write=False)
        return images

    return make


@pytest.fixture
def unbalanced_ledger() -> pd.DataFrame:
    """120 rows in mixed order, classes of 5, 17, 38 and 60, a few trusted in each."""
    generator = np.random.default_rng(7)
    labels = generator.permutation(np.repeat([0, 1, 2, 3], [5, 17, 38, 60]))
    trusted = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate([1, 2, 5, 9]):
        trusted[np.flatnonzero(labels == label)[:count]] = True
    return new_ledger(labels, trusted)


@dataclass(frozen=True)
class ParquetSet:
    """A directory of Parquet files, and what is in it."""

    path: Path
    train: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    names: tuple[str, ...]


def write_parquet(
    file: Path,
    images_nchw: np.ndarray,
    labels: np.ndarray,
    names: tuple[str, ...] = (),
    columns: tuple[str, str] = ("img", "label"),
) -> None:
    """Write images as PNG in the Hugging Face layout."""
    cells = []
    for image in images_nchw:
        buffer = io.BytesIO()
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {columns[0]: pa.array(cells, kind), columns[1]: pa.array(list(map(int, labels)))}
    )
    if names:
        features = {columns[1]: {"names": list(names), "_type": "ClassLabel"}}
        info = json.dumps({"info": {"features": features}}).encode()
        table = table.replace_schema_metadata({b"huggingface": info})
    pq.write_table(table, file)


@pytest.fixture
def parquet_writer() -> Callable[..., None]:
    """:func:`write_parquet`, for tests that need another layout."""
    return write_parquet


@pytest.fixture
def parquet_set(tmp_path: Path, noise: Callable[..., np.ndarray]) -> ParquetSet:
    """Two training files and one test file of colour images with class names."""
    names = ("cat", "dog", "frog")
    train, test = noise(7, 3, 6, 5, seed=1), noise(3, 3, 6, 5, seed=2)
    labels, test_labels = np.array([0, 1, 2, 1, 0, 2, 2]), np.array([2, 0, 1])
    write_parquet(tmp_path / "train-00000.parquet", train[:4], labels[:4], names)
    write_parquet(tmp_path / "train-00001.parquet", train[4:], labels[4:], names)
    write_parquet(tmp_path / "test-00000.parquet", test, test_labels, names)
    return ParquetSet(tmp_path, train, labels, test, test_labels, names)


@pytest.fixture
def cifar_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Noise in the layout of CIFAR-10's archive, whose checksums torchvision is told."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    generator = np.random.default_rng(5)
    checksums = {}

    def write(name: str, content: dict[str, object]) -> None:
        (folder / name).write_bytes(pickle.dumps(content))
        checksums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        data = generator.integers(0, 256, (10, 3 * 32 * 32), dtype=np.uint8)
        write(name, {"data": data, "labels": generator.permutation(10).tolist()})
    names = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    write("batches.meta", {"label_names": names})
    for part in ("train_list", "test_list"):
        files = [[name, checksums[name]] for name, _ in getattr(CIFAR10, part)]
        monkeypatch.setattr(CIFAR10, part, files)
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": checksums["batches.meta"]})
    return tmp_path


@pytest.fixture
def make_component(parquet_set: ParquetSet, cifar_folder: Path) -> Callable[..., Component]:
    """Builds any component at its defaults; only a source of files needs to be told where."""

    def make(kind: type[Component], **settings: object) -> Component:
        if kind is Cifar10:
            settings = {"path": str(cifar_folder), "download": False, **settings}
        if "path" in kind.model_fields:
            settings = {"path": str(parquet_set.path), **settings}
        return kind(**settings)

    return make
