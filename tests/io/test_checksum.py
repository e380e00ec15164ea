"""Checksums: what sha256sum reads, computed once for as long as a file stays as it is."""

import hashlib
import os
import subprocess
from shutil import which

import pytest

from counterdoor.io import checksum
from counterdoor.io.checksum import DamageError

VERSION = "2024-01-01T00.00.01.000Z"


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "data" / "02_a" / "images.npy" / VERSION / "images.npy"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x" * 1000)
    checksum.write(file, file)
    return file


def age(file, seconds=60):
    """As if it had been written a while ago; the time of the change of state stays."""
    past = file.stat().st_mtime - seconds
    os.utime(file, (past, past))


def test_the_file_says_what_the_bytes_are_of(file):
    checksum.verify(file)
    expected = hashlib.sha256(b"x" * 1000).hexdigest()
    first, second = checksum.beside(file).read_text().splitlines()
    assert second == f"{expected}  images.npy"
    assert first == (f'# {{"artifact": "02_a/images.npy", "version": "{VERSION}", "bytes": 1000}}')


@pytest.mark.skipif(which("sha256sum") is None, reason="needs coreutils")
def test_sha256sum_reads_it(file):
    command = ["sha256sum", "--check", "--strict", "images.npy.sha256"]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "images.npy: OK\n"


def test_a_file_that_stays_is_hashed_once_and_one_that_changed_again(file, monkeypatch):
    hashed = []
    compute = hashlib.file_digest

    def counted(opened, name):
        hashed.append(opened.name)
        return compute(opened, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    monkeypatch.setattr(checksum, "YOUNG_NS", 0)
    for _ in range(3):
        checksum.verify(file)
    assert len(hashed) == 1
    before = file.stat()
    with file.open("r+b") as opened:
        opened.write(b"y")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy with its times does
    with pytest.raises(DamageError, match="SHA-256"):
        checksum.verify(file)
    assert len(hashed) == 2


def test_a_file_that_has_just_changed_is_not_remembered(file):
    """The clock of a file system is coarse: a second change may bear the same time."""
    age(file)
    checksum.verify(file)
    assert file not in checksum._known
