"""Small shared fixtures. Real images where learning is tested, noise where arithmetic is."""

import hashlib
import io
import json
import pickle
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR10, CIFAR100, SVHN

from counterdoor import engine
from counterdoor.component import Component
from counterdoor.detectors import LGA, Ensemble
from counterdoor.ledger import new_ledger
from counterdoor.models import External
from counterdoor.sources import (
    Cifar10,
    Cifar100,
    Digits,
    FashionMnist,
    Gtsrb,
    ImageFolder,
    ImageSet,
    Mnist,
    Parquet,
    Svhn,
    TinyImagenet,
)

torch.set_num_threads(1)  # nets this small are slower on several, above all on busy cores


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def fp32() -> Iterator[None]:
    """What is compared with a slow version is computed in fp32, whatever the processor has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "multiplies_bf16", lambda device: False)
        yield


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


def write_cifar(
    kind: type[CIFAR10], root: Path, batches: dict[str, list[int]], meta: dict[str, list[str]]
) -> dict[str, object]:
    """Noise in the layout of a CIFAR archive; gives what torchvision has to be told of it."""
    folder = root / kind.base_folder
    folder.mkdir()
    generator = np.random.default_rng(5)
    checksums = {}

    def write(name: str, content: dict[str, object]) -> None:
        (folder / name).write_bytes(pickle.dumps(content))
        checksums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    for name, labels in batches.items():
        data = generator.integers(0, 256, (len(labels), 3 * 32 * 32), dtype=np.uint8)
        key = "labels" if kind is CIFAR10 else "fine_labels"
        write(name, {"data": data, key: generator.permutation(labels).tolist()})
    write(kind.meta["filename"], meta)
    lists = {
        part: [[name, checksums[name]] for name, _ in getattr(kind, part)]
        for part in ("train_list", "test_list")
    }
    return lists | {"meta": kind.meta | {"md5": checksums[kind.meta["filename"]]}}


@pytest.fixture
def cifar_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10's archive, unpacked: six batches of ten images, one a class."""
    batches = {f"data_batch_{number}": list(range(10)) for number in range(1, 6)}
    names = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    told = write_cifar(
        CIFAR10, tmp_path, batches | {"test_batch": list(range(10))}, {"label_names": names}
    )
    for attribute, value in told.items():
        monkeypatch.setattr(CIFAR10, attribute, value)
    return tmp_path


THEIR_NETS = '''
import torch
from torch import nn


class Net(nn.Module):
    """Takes channels and classes, and has all kinds of awkward tensors."""

    def __init__(self, in_channels, num_classes, width=4, dropout=0.0):
        super().__init__()
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.mix = nn.Linear(width, width)
        self.again = nn.Linear(width, width)
        self.again.weight = self.mix.weight
        self.turned = nn.Parameter(torch.randn(num_classes, width).t())
        self.dropout = nn.Dropout(dropout)

    def forward(self, images):
        features = torch.relu(self.norm(self.first(images))).mean((2, 3))
        features = self.again(torch.tanh(self.mix(features)))
        return self.dropout(features) @ self.turned


def make(num_classes, in_channels=1, **settings):
    return Net(in_channels, num_classes, **settings)


def fails(num_classes):
    raise KeyError("no such block")


def not_a_net(num_classes):
    return [num_classes]


def lazy(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


def frozen(num_classes):
    return make(num_classes).requires_grad_(False)


class Shape(Net):
    """Gives something else than logits, as ``how`` says."""

    def __init__(self, num_classes, how):
        super().__init__(1, num_classes)
        self.how = how

    def forward(self, images):
        logits = super().forward(images)
        return {
            "tuple": lambda: (logits, logits),
            "tuple in training": lambda: (logits, logits) if self.training else logits,
            "features": lambda: logits[:, :-1],
            "transposed": lambda: logits.t(),
            "classes": lambda: torch.zeros_like(logits, dtype=torch.int64),
            "nan": lambda: logits * float("nan"),
            "one image": lambda: logits[:1],
            "branch": lambda: logits if images.sum() > 0 else -logits,
        }[self.how]()


class Config:
    def __init__(self, num_classes):
        raise AssertionError("never called: it is no net")


class Extra(Net):
    def __init__(self, num_classes):
        super().__init__(1, num_classes)

    def get_extra_state(self):
        return {"version": 2}

    def set_extra_state(self, state):
        pass


CONSTANT = 3
'''


@pytest.fixture(scope="session")
def their_nets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of an importable module with nets that are not ours."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "their_nets.py").write_text(THEIR_NETS)
    (folder / "their_broken_nets.py").write_text("import no_such_package\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield "their_nets"
    sys.modules.pop("their_nets", None)


@pytest.fixture
def cifar100_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-100's archive, unpacked: an image a class in each part."""
    batches = {"train": list(range(100)), "test": list(range(100))}
    names = [f"thing {number}" for number in range(100)]
    told = write_cifar(CIFAR100, tmp_path, batches, {"fine_label_names": names})
    for attribute, value in told.items():
        monkeypatch.setattr(CIFAR100, attribute, value)
    return tmp_path


@pytest.fixture
def idx_folder(tmp_path: Path, noise: Callable[..., np.ndarray]) -> Path:
    """MNIST's and Fashion-MNIST's files, unpacked: 20 training and 10 test images each."""
    for seed, name in enumerate(("MNIST", "FashionMNIST")):
        folder = tmp_path / name / "raw"
        folder.mkdir(parents=True)
        for part, n in (("train", 20), ("t10k", 10)):
            images = noise(n, 1, 28, 28, seed=seed + n)
            header = struct.pack(">IIII", 2051, n, 28, 28)
            (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
            labels = (np.arange(n) * 3 % 10).astype(np.uint8)
            header = struct.pack(">II", 2049, n)
            (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return tmp_path


@pytest.fixture
def svhn_folder(
    tmp_path: Path, noise: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """SVHN's two files: 20 training and 10 test images; a zero has the label ten there."""
    told = dict(SVHN.split_list)
    for part, n in (("train", 20), ("test", 10)):
        file = tmp_path / f"{part}_32x32.mat"
        pixels = noise(n, 3, 32, 32, seed=n).transpose(2, 3, 1, 0)
        savemat(file, {"X": pixels, "y": (np.arange(n) % 10 + 1)[:, None].astype(np.uint8)})
        told[part] = [*told[part][:2], hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", told)
    return tmp_path


@pytest.fixture
def gtsrb_folder(tmp_path: Path, noise: Callable[..., np.ndarray]) -> Path:
    """GTSRB as torchvision unpacks it: a sign a class in each part, of differing sizes."""
    base = tmp_path / "gtsrb"
    tested = base / "GTSRB" / "Final_Test" / "Images"
    tested.mkdir(parents=True)
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for label in range(43):
        width, height = 15 + label, 60 - label
        pixels = noise(2, 3, height, width, seed=label).transpose(0, 2, 3, 1)
        folder = base / "GTSRB" / "Training" / f"{label:05}"
        folder.mkdir(parents=True)
        (folder / f"GT-{label:05}.csv").write_text("Filename;ClassId")
        Image.fromarray(pixels[0]).save(folder / "00000_00000.ppm")
        Image.fromarray(pixels[1]).save(tested / f"{42 - label:05}.ppm")
        rows.append(f"{42 - label:05}.ppm;{width};{height};5;5;9;9;{label}")
    (base / "GT-final_test.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.fixture
def tiny_imagenet_folder(tmp_path: Path, noise: Callable[..., np.ndarray]) -> Path:
    """Tiny ImageNet's layout with three classes, two of which have the same first word."""
    wnids = ["n03", "n01", "n02"]
    (tmp_path / "wnids.txt").write_text("\n".join(wnids) + "\n")
    words = "n01\tgoldfish, Carassius auratus\nn02\tcrane\nn03\tcrane, hoist\nn99\tnothing\n"
    (tmp_path / "words.txt").write_text(words)
    (tmp_path / "val" / "images").mkdir(parents=True)
    lines = []
    for label, wnid in enumerate(sorted(wnids)):
        folder = tmp_path / "train" / wnid / "images"
        folder.mkdir(parents=True)
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
        for number in range(2):
            coarse = noise(1, 3, 4, 4, seed=10 * label + number)[0].transpose(1, 2, 0)
            image = Image.fromarray(coarse.repeat(16, 0).repeat(16, 1))
            image.save(folder / f"{wnid}_{number}.JPEG")
        image.convert("L").save(tmp_path / "val" / "images" / f"val_{2 - label}.JPEG")
        lines.append(f"val_{2 - label}.JPEG\t{wnid}\t0\t0\t9\t9")
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def class_folders(tmp_path: Path, noise: Callable[..., np.ndarray]) -> Path:
    """A folder a class in train/ and test/, PNG of 6x5, at differing depths."""
    for part, n in (("train", 3), ("test", 2)):
        for label, name in enumerate(("ant", "bee", "cow")):
            for number, pixels in enumerate(noise(n, 3, 6, 5, seed=10 * n + label)):
                folder = tmp_path / part / name / ("deep/er" if number == 1 else "")
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{number}.png")
    return tmp_path


SOURCE_FOLDERS: dict[type[Component], str] = {
    Cifar10: "cifar_folder",
    Cifar100: "cifar100_folder",
    Mnist: "idx_folder",
    FashionMnist: "idx_folder",
    Svhn: "svhn_folder",
    Gtsrb: "gtsrb_folder",
    TinyImagenet: "tiny_imagenet_folder",
    ImageFolder: "class_folders",
    Parquet: "parquet_set",
}
"""The fixture that makes a small copy of each source of files."""


@pytest.fixture
def make_component(request: pytest.FixtureRequest) -> Callable[..., Component]:
    """Builds any component at its defaults; what lies outside needs to be told where."""

    def make(kind: type[Component], **settings: object) -> Component:
        if kind in SOURCE_FOLDERS:
            made = request.getfixturevalue(SOURCE_FOLDERS[kind])
            settings = {"path": str(getattr(made, "path", made)), **settings}
        if "download" in kind.model_fields:
            settings = {"download": False, **settings}
        if kind is Ensemble:
            settings = {"members": (LGA(),), **settings}
        if kind is External:
            theirs = request.getfixturevalue("their_nets")
            target = {"target": f"{theirs}.Net", "channels_argument": "in_channels"}
            settings = target | settings
        return kind(**settings)

    return make
