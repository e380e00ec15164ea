"""Versions are whole or absent: round trips, failing saves, damaged files."""

import errno
import os
import resource
from contextlib import contextmanager
from pathlib import Path
from shutil import copy, copytree, rmtree

import numpy as np
import pandas as pd
import pytest
import torch
from kedro.io import DatasetError, Version
from kedro.io.core import VersionNotFoundError
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
        f"{name}/{FIRST}/{name}.sha256",
        f"{name}/{SECOND}",
        f"{name}/{SECOND}/{name}",
        f"{name}/{SECOND}/{name}.sha256",
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
    assert len(files(tmp_path / "a" / name)) == 3
    assert dataset(tmp_path, name).load() is not None


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
    assert there == [FIRST, f"{FIRST}/.{name}.partial", f"{FIRST}/{name}.sha256"]
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
    assert files(tmp_path / "a" / name) == [FIRST, f"{FIRST}/{name}", f"{FIRST}/{name}.sha256"]


@pytest.mark.parametrize("name", KINDS)
def test_a_leftover_of_a_killed_process_is_no_version(tmp_path, name):
    """SIGKILL runs no cleaning up: the hidden file stays, and nobody takes it for a version."""
    dataset(tmp_path, name, FIRST).save(KINDS[name][1]())
    folder = tmp_path / "a" / name / SECOND
    folder.mkdir()
    (folder / f".{name}.partial").write_bytes(b"half of")
    assert dataset(tmp_path, name).resolve_load_version() == FIRST
    (folder / f"{name}.sha256").write_text("what it would have been")
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


def refused(data):
    """What the refusal says, which is one line and names the file and the remedy."""
    with pytest.raises(DatasetError) as caught:
        data.load()
    text = str(caught.value)
    path = str(data._get_load_path())
    assert text.startswith(f"{path} cannot be read: ")
    assert "run again the pipeline that makes it" in text
    assert "\n" not in text
    return text.removeprefix(f"{path} cannot be read: ").partition(". The file is damaged")[0]


@pytest.mark.parametrize("name", KINDS)
def test_one_flipped_bit_anywhere_is_found(tmp_path, name):
    dataset(tmp_path, name, FIRST).save(KINDS[name][1]())
    file = tmp_path / "a" / name / FIRST / name
    whole = file.read_bytes()
    for place in np.linspace(0, len(whole) - 1, 20).astype(int):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(place) % 8
        file.write_bytes(flipped)
        assert refused(dataset(tmp_path, name)) == "its SHA-256 is not that of what was saved"
    file.write_bytes(whole)
    assert dataset(tmp_path, name).load() is not None


@pytest.mark.parametrize("name", KINDS)
def test_a_version_in_the_place_of_another_is_found(tmp_path, name):
    for version, seed in ((FIRST, 1), (SECOND, 2)):
        dataset(tmp_path, name, version).save(KINDS[name][1](seed))
    folder = tmp_path / "a" / name
    copy(folder / FIRST / name, folder / SECOND / name)
    assert refused(dataset(tmp_path, name)).startswith(("its SHA-256", "it has "))
    rmtree(folder / SECOND)
    copytree(folder / FIRST, folder / SECOND)  # the checksum, too
    assert refused(dataset(tmp_path, name)) == f"its checksum is that of version {FIRST!r}"


@pytest.mark.parametrize("change", ["layer", "variant", "name"])
def test_an_artifact_in_the_place_of_another_is_found_though_its_checksum_came_along(
    tmp_path, change
):
    places = {
        "own": "02_a/x/s0/images.npy",
        "layer": "03_a/x/s0/images.npy",
        "variant": "02_a/x/s1/images.npy",
        "name": "02_a/x/s0/test_images.npy",
    }

    def at(which, save=None):
        path = str(tmp_path / "data" / places[which])
        return ImagesDataset(filepath=path, version=Version(None, save))

    at(change, FIRST).save(make_images(2))
    at("own", FIRST).save(make_images(1))
    other, own = (Path(at(which)._get_load_path()) for which in (change, "own"))
    copy(other, own)
    copy(f"{other}.sha256", f"{own}.sha256")
    assert refused(at("own")) == (
        f"its checksum is that of {places[change]!r}, not of {places['own']!r}"
    )


def test_a_project_may_be_moved_whole(tmp_path):
    path = tmp_path / "data" / "here" / "data" / "02_a" / "images.npy"
    ImagesDataset(filepath=str(path), version=Version(None, FIRST)).save(make_images())
    (tmp_path / "data" / "here").rename(tmp_path / "there")
    moved = tmp_path / "there" / "data" / "02_a" / "images.npy"
    same(ImagesDataset(filepath=str(moved), version=Version(None, None)).load(), make_images())


@pytest.mark.parametrize("name", KINDS)
def test_a_checksum_that_is_gone_or_edited_is_found(tmp_path, name):
    dataset(tmp_path, name, FIRST).save(KINDS[name][1]())
    sidecar = tmp_path / "a" / name / FIRST / f"{name}.sha256"
    whole = sidecar.read_text()
    for edited in ("", "x", whole + "\n", whole.upper(), whole.replace("{", "[1,"), "# 1\n2  3"):
        sidecar.write_text(edited)
        assert refused(dataset(tmp_path, name)) == f"its checksum {name}.sha256 is itself damaged"
    sidecar.write_bytes(b"\xff\xfe" + os.urandom(300_000))
    assert "is itself damaged" in refused(dataset(tmp_path, name))
    sidecar.unlink()
    assert f"its checksum {name}.sha256 is not beside it" in refused(dataset(tmp_path, name))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_no_file_is_named_and_not_opened(tmp_path, name, kind):
    for version in (FIRST, SECOND):
        dataset(tmp_path, name, version).save(KINDS[name][1]())
    whole = tmp_path / "a" / name / SECOND / name
    put = {
        "folder": lambda at: at.mkdir(),
        "pipe": os.mkfifo,
        "link": lambda at: at.symlink_to(tmp_path / "a" / name / FIRST / name),
    }[kind]
    for damaged in (whole, whole.with_name(f"{name}.sha256")):
        damaged.rename(tmp_path / "kept")
        put(damaged)
        assert dataset(tmp_path, name).exists()
        expected = f"it is a {kind}, not a file"
        assert refused(dataset(tmp_path, name)) == expected
        damaged.rmdir() if kind == "folder" else damaged.unlink()
        (tmp_path / "kept").rename(damaged)


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_is_lost_is_not_taken_for_the_version_before(tmp_path, name):
    for version in (FIRST, SECOND):
        dataset(tmp_path, name, version).save(KINDS[name][1]())
    (tmp_path / "a" / name / SECOND / name).unlink()
    assert refused(dataset(tmp_path, name)) == "it is not there"


@pytest.mark.parametrize("name", KINDS)
def test_what_else_lies_in_the_folder_is_no_version(tmp_path, name):
    folder = tmp_path / "a" / name
    folder.mkdir(parents=True)
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "notes").write_bytes(b"x")
    (folder / "zoo").mkdir()
    (folder / "zoo" / name).write_bytes(b"x")
    (folder / f"{THIRD}.bak").mkdir()
    (folder / f"{THIRD}.bak" / name).write_bytes(b"x")
    (folder / THIRD).write_bytes(b"x")
    assert not dataset(tmp_path, name).exists()
    with pytest.raises(VersionNotFoundError):
        dataset(tmp_path, name).load()
    dataset(tmp_path, name, FIRST).save(KINDS[name][1]())
    assert dataset(tmp_path, name).list_versions(full_path=False) == [FIRST]
    assert dataset(tmp_path, name).load() is not None
    assert refused(dataset(tmp_path, name, load="zoo")).startswith("its checksum")
    with pytest.raises(DatasetError, match=f"has no version {THIRD}; there is {FIRST}$"):
        dataset(tmp_path, name, load=THIRD).load()


@pytest.mark.parametrize("name", KINDS)
def test_a_file_in_the_place_of_all_versions_is_named(tmp_path, name):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_bytes(b"x")
    for look in (dataset(tmp_path, name).load, dataset(tmp_path, name).exists):
        with pytest.raises(DatasetError) as caught:
            look()
        assert str(caught.value).startswith(f"{tmp_path / 'a' / name}, the folder of an artifact's")
        assert "\n" not in str(caught.value)


def test_a_place_with_signs_of_a_pattern_is_found(tmp_path):
    path = str(tmp_path / "what? [a-b] *" / "images.npy")
    ImagesDataset(filepath=path, version=Version(None, FIRST)).save(make_images())
    same(ImagesDataset(filepath=path, version=Version(None, None)).load(), make_images())


def test_a_file_that_is_no_version_needs_no_checksum(tmp_path):
    """Such as the model that somebody was sent."""
    dataset(tmp_path, "net.safetensors", FIRST).save(make_net())
    sent = tmp_path / "sent.safetensors"
    copy(tmp_path / "a" / "net.safetensors" / FIRST / "net.safetensors", sent)
    same(TrainedNetDataset(filepath=str(sent)).load(), make_net())
    (tmp_path / "link").symlink_to(sent)
    same(TrainedNetDataset(filepath=str(tmp_path / "link")).load(), make_net())
    TextDataset(filepath=str(tmp_path / "own.txt")).save("text")
    assert not list(tmp_path.glob("*.sha256"))
    sent.unlink()
    os.mkfifo(sent)
    with pytest.raises(DatasetError, match="cannot be used as a net: it is a pipe, not a file"):
        TrainedNetDataset(filepath=str(sent)).load()


@pytest.mark.parametrize("name", CHECKED)
def test_the_remedy_works(tmp_path, name):
    for version, seed in ((FIRST, 1), (SECOND, 2)):
        dataset(tmp_path, name, version).save(KINDS[name][1](seed))
    folder = tmp_path / "a" / name / SECOND
    os.truncate(folder / name, 5)
    with pytest.raises(DatasetError):
        dataset(tmp_path, name).load()
    rmtree(folder)
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
