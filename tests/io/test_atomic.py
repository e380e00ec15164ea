"""Versions are whole or absent: round trips, failing saves, damaged files."""

import errno
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from kedro.io import DatasetError, Version
from matplotlib.figure import Figure

from counterdoor.io import (
    FigureDataset,
    ImagesDataset,
    JSONDataset,
    ParquetDataset,
    TextDataset,
    TrainedNetDataset,
)
from counterdoor.models import DigitsCNN, TrainedNet, build_net
from counterdoor.stamp import Stamp

FIRST, SECOND, THIRD = (f"2024-01-01T00.00.0{i}.000Z" for i in range(1, 4))
PNG = b"\x89PNG\r\n\x1a\n"


def make_images(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (40, 1, 12, 12), dtype=np.uint8)


def make_table(seed=0):
    generator = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "sample_id": np.arange(300, dtype=np.int64),
            "score": generator.normal(size=300),
            "suspect": generator.random(300) < 0.3,
            "role": [f"role {number}" for number in generator.integers(0, 9, 300)],
        }
    )


def make_plain(seed=0):
    return {"class_names": ["ä", "b"], "rate": 0.1 + seed, "numbers": list(range(400)), "no": None}


def make_text(seed=0):
    return f"<html>{seed} – ä\n" + "line\n" * 500


def make_figure(seed=0):
    figure = Figure()
    figure.subplots().plot(np.random.default_rng(seed).normal(size=50))
    return figure


def make_net(seed=0):
    images = make_images(seed)
    net = build_net(DigitsCNN(width=2, hidden=4), images, 3, seed=seed, stream="x")
    return TrainedNet.of(DigitsCNN(width=2, hidden=4), images, 3, net.state_dict(), Stamp())


def same(one, other):
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other)
    elif isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other, strict=True)
    elif isinstance(one, TrainedNet):
        assert one.architecture == other.architecture
        assert one.stamp == other.stamp
        assert set(one.state) == set(other.state)
        assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)
    else:
        assert one == other


KINDS = {
    "images.npy": (ImagesDataset, make_images),
    "table.parquet": (ParquetDataset, make_table),
    "info.json": (JSONDataset, make_plain),
    "report.html": (TextDataset, make_text),
    "figure.png": (FigureDataset, make_figure),
    "net.safetensors": (TrainedNetDataset, make_net),
}
LOADED_AS_SAVED = sorted(set(KINDS) - {"figure.png"})
CHECKED = ["images.npy", "table.parquet", "info.json", "net.safetensors"]


def dataset(folder: Path, name: str, save: str | None = None, load: str | None = None):
    return KINDS[name][0](filepath=str(folder / "a" / name), version=Version(load, save))


def files(folder: Path):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@contextmanager
def full_disk(size=100):
    """Every file of this process ends at ``size`` bytes, as on a device that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", LOADED_AS_SAVED)
def test_what_is_loaded_is_what_was_saved(tmp_path, name):
    dataset(tmp_path, name, FIRST).save(KINDS[name][1]())
    same(dataset(tmp_path, name).load(), KINDS[name][1]())


@pytest.mark.parametrize("name", KINDS)
def test_a_version_is_a_folder_of_its_own_and_the_newest_is_loaded(tmp_path, name):
    dataset(tmp_path, name, FIRST).save(KINDS[name][1](1))
    first = (tmp_path / "a" / name / FIRST / name).read_bytes()
    dataset(tmp_path, name, SECOND).save(KINDS[name][1](2))
    assert files(tmp_path / "a") == [
        name,
        f"{name}/{FIRST}",
        f"{name}/{FIRST}/{name}",
        f"{name}/{SECOND}",
        f"{name}/{SECOND}/{name}",
    ]
    assert (tmp_path / "a" / name / FIRST / name).read_bytes() == first
    assert (tmp_path / "a" / name / SECOND / name).read_bytes() != first
    assert dataset(tmp_path, name).resolve_load_version() == SECOND
    if name in LOADED_AS_SAVED:
        same(dataset(tmp_path, name).load(), KINDS[name][1](2))
        same(dataset(tmp_path, name, load=FIRST).load(), KINDS[name][1](1))


@pytest.mark.parametrize("name", LOADED_AS_SAVED)
def test_what_was_saved_is_loaded_though_another_has_saved_since(tmp_path, name):
    """Also where the other's version is there before: two runs may share a folder."""
    kind, make = KINDS[name]
    path = str(tmp_path / "artifact")
    kind(filepath=path, version=Version(None, THIRD)).save(make(3))
    ours = kind(filepath=path, version=Version(None, FIRST))
    ours.save(make(1))
    kind(filepath=path, version=Version(None, "2025-01-01T00.00.00.000Z")).save(make(5))
    same(ours.load(), make(1))


@pytest.mark.parametrize("name", KINDS)
def test_a_version_is_never_written_over(tmp_path, name):
    dataset(tmp_path, name, FIRST).save(KINDS[name][1](1))
    before = (tmp_path / "a" / name / FIRST / name).read_bytes()
    with pytest.raises(DatasetError, match="must not exist"):
        dataset(tmp_path, name, FIRST).save(KINDS[name][1](2))
    assert (tmp_path / "a" / name / FIRST / name).read_bytes() == before
    assert len(files(tmp_path / "a" / name)) == 2


@pytest.mark.parametrize("name", KINDS)
def test_nothing_under_the_final_name_until_all_is_written(tmp_path, name, monkeypatch):
    """The rename is the last thing that happens, and what is renamed is complete."""
    seen = []
    replace = Path.replace

    def watched(path, target):
        seen.append((path, path.stat().st_size, files(tmp_path / "a" / name)))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", watched)
    dataset(tmp_path, name, FIRST).save(KINDS[name][1]())
    (partial, size, there), *others = seen
    assert not others
    assert partial.name == f".{name}.partial"
    assert there == [FIRST, f"{FIRST}/.{name}.partial"]
    assert size == (tmp_path / "a" / name / FIRST / name).stat().st_size


def nothing_left(tmp_path, name):
    assert not dataset(tmp_path, name).exists()
    assert [path for path in files(tmp_path) if path not in ("a", f"a/{name}")] == []


@pytest.mark.parametrize("name", KINDS)
def test_a_full_disk_leaves_nothing(tmp_path, name):
    with full_disk(), pytest.raises(DatasetError):
        dataset(tmp_path, name, FIRST).save(KINDS[name][1]())
    nothing_left(tmp_path, name)
    dataset(tmp_path, name, FIRST).save(KINDS[name][1]())  # and the way is free again
    assert dataset(tmp_path, name).exists()


@pytest.mark.parametrize("name", KINDS)
def test_a_full_disk_leaves_the_version_before(tmp_path, name):
    dataset(tmp_path, name, FIRST).save(KINDS[name][1](1))
    before = files(tmp_path)
    with full_disk(), pytest.raises(DatasetError):
        dataset(tmp_path, name, SECOND).save(KINDS[name][1](2))
    assert files(tmp_path) == before
    assert dataset(tmp_path, name).resolve_load_version() == FIRST
    if name in LOADED_AS_SAVED:
        same(dataset(tmp_path, name).load(), KINDS[name][1](1))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt()])
def test_an_error_at_the_last_moment_leaves_nothing(tmp_path, name, error, monkeypatch):
    def fails(path, target):
        raise error

    monkeypatch.setattr(Path, "replace", fails)
    kind = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else DatasetError
    with pytest.raises(kind):
        dataset(tmp_path, name, FIRST).save(KINDS[name][1]())
    nothing_left(tmp_path, name)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("images.npy", make_images().astype(float)),
        ("images.npy", "no array"),
        ("table.parquet", pd.DataFrame({"mixed": [1, "two", object()]})),
        ("info.json", {"fine": 1, "bad": object()}),
        ("report.html", 7),
        ("figure.png", "no figure"),
        ("net.safetensors", {"no": "net"}),
    ],
)
def test_what_cannot_be_written_leaves_the_version_before(tmp_path, name, bad):
    with pytest.raises(DatasetError):
        dataset(tmp_path, name, FIRST).save(bad)
    nothing_left(tmp_path, name)
    dataset(tmp_path, name, SECOND).save(KINDS[name][1]())
    before = files(tmp_path)
    with pytest.raises(DatasetError):
        dataset(tmp_path, name, THIRD).save(bad)
    assert files(tmp_path) == before
    assert dataset(tmp_path, name).resolve_load_version() == SECOND


@pytest.mark.parametrize("name", KINDS)
def test_one_data_set_saves_again_after_a_failure(tmp_path, name):
    kept = dataset(tmp_path, name, FIRST)
    with full_disk(), pytest.raises(DatasetError):
        kept.save(KINDS[name][1]())
    kept.save(KINDS[name][1]())
    assert files(tmp_path / "a" / name) == [FIRST, f"{FIRST}/{name}"]


@pytest.mark.parametrize("name", KINDS)
def test_a_leftover_of_a_killed_process_is_no_version(tmp_path, name):
    """SIGKILL runs no cleaning up: the hidden file stays, and nobody takes it for a version."""
    dataset(tmp_path, name, FIRST).save(KINDS[name][1]())
    folder = tmp_path / "a" / name / SECOND
    folder.mkdir()
    (folder / f".{name}.partial").write_bytes(b"half of")
    assert dataset(tmp_path, name).resolve_load_version() == FIRST


def lengths(size):
    return sorted({0, 1, 7, size // 4, size // 2, size - 40, size - 1})


@pytest.mark.parametrize("name", CHECKED)
def test_a_truncated_file_names_itself_and_the_remedy(tmp_path, name):
    dataset(tmp_path, name, FIRST).save(KINDS[name][1]())
    file = tmp_path / "a" / name / FIRST / name
    for length in reversed(lengths(file.stat().st_size)):
        os.truncate(file, length)
        with pytest.raises(DatasetError) as caught:
            dataset(tmp_path, name).load()
        assert str(file) in str(caught.value), length
        assert "delete the folder of this version" in str(caught.value)
        assert "run again the pipeline that makes it" in str(caught.value)


@pytest.mark.parametrize("name", KINDS)
def test_a_version_that_there_is_not_is_told_with_those_there_are(tmp_path, name):
    for version in (FIRST, SECOND):
        dataset(tmp_path, name, version).save(KINDS[name][1]())
    with pytest.raises(DatasetError) as caught:
        dataset(tmp_path, name, load=THIRD).load()
    assert str(caught.value) == f"{name} has no version {THIRD}; there are {FIRST}, {SECOND}"


@pytest.mark.parametrize("name", CHECKED)
def test_a_file_of_another_kind_names_itself(tmp_path, name):
    dataset(tmp_path, name, FIRST).save(KINDS[name][1]())
    file = tmp_path / "a" / name / FIRST / name
    file.write_bytes(b"<html>502 Bad Gateway</html>" * 50)
    with pytest.raises(DatasetError, match="is damaged or incomplete") as caught:
        dataset(tmp_path, name).load()
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("name", CHECKED)
def test_the_remedy_works(tmp_path, name):
    for version, seed in ((FIRST, 1), (SECOND, 2)):
        dataset(tmp_path, name, version).save(KINDS[name][1](seed))
    folder = tmp_path / "a" / name / SECOND
    os.truncate(folder / name, 5)
    with pytest.raises(DatasetError):
        dataset(tmp_path, name).load()
    (folder / name).unlink()
    folder.rmdir()
    same(dataset(tmp_path, name).load(), KINDS[name][1](1))


@pytest.mark.parametrize("name", KINDS)
def test_metadata_stays_with_the_data_set(tmp_path, name):
    metadata = {"mlflow": "artifact"}
    assert KINDS[name][0](filepath=str(tmp_path / name), metadata=metadata).metadata == metadata


def test_a_table_keeps_its_types(tmp_path):
    table = make_table()
    dataset(tmp_path, "table.parquet", FIRST).save(table)
    loaded = dataset(tmp_path, "table.parquet").load()
    assert loaded.dtypes.to_dict() == table.dtypes.to_dict()
    assert loaded["sample_id"].dtype == np.int64
    assert loaded["suspect"].dtype == bool


def test_a_figure_loads_as_the_bytes_of_its_png(tmp_path):
    dataset(tmp_path, "figure.png", FIRST).save(make_figure())
    loaded = dataset(tmp_path, "figure.png").load()
    assert loaded == (tmp_path / "a" / "figure.png" / FIRST / "figure.png").read_bytes()
    assert loaded.startswith(PNG)
    assert loaded.endswith(b"IEND\xaeB`\x82")


def test_saving_a_figure_closes_no_other(tmp_path):
    import matplotlib.pyplot as plt

    other = plt.figure()
    try:
        dataset(tmp_path, "figure.png", FIRST).save(make_figure())
        assert plt.fignum_exists(other.number)
    finally:
        plt.close(other)
