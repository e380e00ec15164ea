"""Headers of safetensors files: what is read, and what is refused before anything is believed."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from counterdoor.io.safetensors_header import MAX_HEADER, read_header, strict_json


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(2, 3), "b": torch.tensor(1)}, path, {"text": "{}"})
    return path


def written(path, header, body=b""):
    """A file with this header, which may be no JSON."""
    told = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(told).to_bytes(8, "little") + told + body)
    return path


def test_tensors_and_texts(file):
    entries, texts = read_header(file)
    assert texts == {"text": "{}"}
    assert {name: (each.dtype, each.shape) for name, each in entries.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("I64", ()),
    }


def test_a_link_is_followed(file, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(file)
    assert read_header(link) == read_header(file)


def test_no_text_is_none(tmp_path):
    save_file({}, tmp_path / "x")
    assert read_header(tmp_path / "x") == ({}, {})


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="it is a pipe, not a file"):
        read_header(tmp_path / "pipe")


def test_other_things_are_told(tmp_path):
    for path, kind in ((tmp_path, "a folder"), ("/dev/null", "a device")):
        link = tmp_path / "link"
        link.symlink_to(path)
        with pytest.raises(ValueError, match=f"it is {kind}, not a file"):
            read_header(link)
        link.unlink()
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "nothing")


@pytest.mark.parametrize("length", [0, 7, 8, 30, -1])
def test_a_file_that_was_cut_off(file, length):
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"cut off|its tensors take 32 bytes, but it holds 31"):
        read_header(file)


def test_bytes_that_belong_to_no_tensor(file):
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(ValueError, match="its tensors take 32 bytes, but it holds 36"):
        read_header(file)


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b" " * (MAX_HEADER + 1), f"more than {MAX_HEADER}"),
        (b"\xff{}", "not UTF-8"),
        (b"[]", "no table"),
        (b"hello", "its header is no JSON: Expecting value, character 0"),
        (b'{"a": 1, "a": 2}', "the key 'a' twice"),
        ({"a": []}, "its header: a: Input should be a valid dictionary"),
        ({"a": ENTRY | {"shape": [-1]}}, "its header: a.shape.0: Input should be greater"),
        ({"a": ENTRY | {"shape": [True]}}, "its header: a.shape.0: Input should be a valid int"),
        ({"a": ENTRY | {"more": 1}}, "its header: a.more: Extra inputs are not permitted"),
        ({"a": ENTRY, "b": {}}, "its header: b.dtype: Field required"),
        ({"__metadata__": {"a": 1}, "a": ENTRY}, "__metadata__: a: Input should be a valid string"),
        ({"\x1b[2J\n": []}, r"its header: \\x1b\[2J\\n: Input"),
    ],
)
def test_headers_that_safetensors_does_not_write(tmp_path, header, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        read_header(written(tmp_path / "x", header, bytes(4)))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is no JSON"),
        ("{} {}", "is no JSON: Extra data, character 3"),
        ('{"a": {"b": 1, "b": 1}}', "has the key 'b' twice"),
        ("[NaN]", "has the number NaN"),
        ("[-Infinity]", "has the number -Infinity"),
        ("[1e999]", "has the number 1e999"),
        ("9" * 5000, "has the number 9999"),
        ("[" * 100_000 + "]" * 100_000, "is nested deeper than 32"),
        ("[" * 33 + "]" * 33, "is nested deeper than 32"),
    ],
)
def test_json_that_readers_differ_on(text, reason):
    with pytest.raises(ValueError, match=f"^it {reason}") as caught:
        strict_json(text, "it")
    assert len(str(caught.value)) < 200


def test_json_as_it_is():
    told = '[1, -2.5, 1e3, "a", null, true, {"b": []}]'
    assert strict_json(told, "it") == json.loads(told)
    assert strict_json("[" * 32 + "]" * 32, "it")
