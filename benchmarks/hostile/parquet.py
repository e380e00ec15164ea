"""Parquet files that claim too much, and the kinds of columns that people have.

What claims too much is read in a process of its own, whose memory is measured.
"""

import io
import json
import subprocess
import sys
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

MEMORY = 2_000_000_000
"""Bytes that reading may take at most."""

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

READ = """
import json, sys
from counterdoor.params import IngestParams
from counterdoor.pipelines.ingest.nodes import ingest

source = {"name": "parquet", "path": sys.argv[1], "image_mode": "L"}
try:
    ingest(IngestParams(source=source, test_share=0.3, trusted_share=0), 0)
    told = None
except ValueError as error:
    told = str(error)
# not getrusage: that starts from the peak of the process that started this one
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps([int(status["VmHWM"].split()[0]) * 1024, told]))
"""


def picture(seed: int, side: int = 8) -> np.ndarray:
    """Grey noise, uint8."""
    return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)


def png(levels: np.ndarray) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")
    return buffer.getvalue()


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is so large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        whole = kind + data
        return len(data).to_bytes(4) + whole + zlib.crc32(whole).to_bytes(4)

    head = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 0, 0, 0, 0])
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def images(n: int) -> pa.Array:
    """A column in the layout of the Hub."""
    return pa.array([{"bytes": png(picture(row)), "path": None} for row in range(n)], STRUCT)


def repeated(value: pa.Array, n: int) -> pa.Array:
    """One value n times, in memory once."""
    indices = pa.array(np.zeros(n, np.int32))
    return pa.DictionaryArray.from_arrays(indices, value)


def zeros_of(values: int, rows: int, kind: pa.DataType) -> pa.Array:
    """Rows of one list each, in which all levels are 0."""
    flat = pa.array(np.zeros(values * rows, kind.to_pandas_dtype()))
    inner = pa.LargeListArray.from_arrays(np.arange(0, values * rows + 1, values), flat)
    return pa.LargeListArray.from_arrays(np.arange(rows + 1), inner)


def bombs(seed: int) -> Iterator[tuple[str, Callable[[], pa.Table], dict[str, Any]]]:
    """Tables that are small as files, and how they are written; larger with every seed."""
    packed = {"compression": "zstd", "compression_level": 19}
    more = 1 + 0.3 * seed
    label = lambda n: pa.array(np.arange(n) % 2)  # noqa: E731
    for rows in (2 * 10**7, 5 * 10**7):
        n = int(rows * more)
        yield (
            f"{n} rows",
            lambda n=n: pa.table(
                {"img": pa.nulls(n, pa.binary()), "label": repeated(pa.array([1]), n)}
            ),
            packed,
        )
    for values in (2 * 10**7, 3 * 10**7):
        n = int(values * more)
        yield (
            f"a list of {n} levels",
            lambda n=n: pa.table({"img": zeros_of(n, 2, pa.uint8()), "label": label(2)}),
            packed,
        )
    for size, rows in ((10**6, 9_000), (10**7, 5_000), (6 * 10**7, 2_000)):
        n = int(size * more)
        yield (
            f"{rows} times the same {n} bytes",
            lambda n=n, rows=rows: pa.table(
                {"img": repeated(pa.array([bytes(n)]), rows), "label": label(rows)}
            ),
            packed,
        )
        yield (
            f"{rows} times the same {n} characters as a label",
            lambda n=n, rows=rows: pa.table(
                {
                    "img": images(4).take(pa.array([0] * rows)),
                    "label": repeated(pa.array(["a" * n]), rows),
                }
            ),
            packed,
        )
    yield (
        "many levels in many lists",
        lambda: pa.table(
            {"img": zeros_of(10**6, int(40 * more), pa.uint8()), "label": label(int(40 * more))}
        ),
        packed,
    )
    for value in (10**10, 2**62, 10**6, -(10**10)):
        yield (
            f"a label of {value + seed}",
            lambda value=value: pa.table(
                {"img": images(20), "label": [0, 1] * 9 + [0, value + seed]}
            ),
            {},
        )
    side = 60_000 + seed
    for width, height in ((side, side), (2**31 - 1 - seed, 2), (9_400, 9_400)):
        for times in (1, 40):
            cell = {"bytes": claiming(width, height), "path": None}
            yield (
                f"{times} pictures that claim {width}x{height}",
                lambda cell=cell, times=times: pa.table(
                    {"img": pa.array([cell] * times, STRUCT), "label": label(times)}
                ),
                {},
            )
    names = [f"class {number}" for number in range(int(200_000 * more))]
    yield (
        "a million class names",
        lambda: pa.table({"img": images(20), "label": label(20)}).replace_schema_metadata(
            {b"huggingface": json.dumps({"info": {"features": {"label": {"names": names}}}})}
        ),
        {},
    )
    nested = "[" * 100_000 + "]" * 100_000
    yield (
        "deep metadata",
        lambda: pa.table({"img": images(20), "label": label(20)}).replace_schema_metadata(
            {b"huggingface": nested}
        ),
        {},
    )


def outcome_of_bomb(folder: Path) -> str | None:
    """What was wrong about reading it in a process of its own."""
    command = [sys.executable, "-c", READ, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        return "still reading after five minutes"
    if done.returncode:
        return f"exit code {done.returncode}: {done.stderr.strip()[-200:]}"
    memory, told = json.loads(done.stdout.splitlines()[-1])
    if memory > MEMORY:
        return f"{memory / 1e9:.1f} GB: {told}"
    return None if told is None or ("\n" not in told and len(told) < 1000) else told


def kinds(seed: int) -> Iterator[tuple[str, dict[str, Any], tuple[str, ...] | str]]:
    """Columns as people have them; the classes that they stand for, or what is said."""
    n = 12
    grey = [picture(seed * n + row) for row in range(n)]
    files = [png(each) for each in grey]
    hub = pa.array([{"bytes": each, "path": None} for each in files], STRUCT)
    label = pa.array(np.arange(n) % 2)
    two = ("0", "1")
    yield "Hub", {"img": hub, "label": label}, two
    for name in ("image", "images", "picture"):
        yield f"column {name}", {name: hub, "label": label}, two
    for name in ("labels", "target", "class", "y"):
        yield f"column {name}", {"img": hub, name: label}, two
    yield "two image columns", {"image": hub, "picture": hub, "label": label}, "image_column"
    yield "two label columns", {"img": hub, "target": label, "class": label}, "label_column"
    for kind in (pa.binary(), pa.large_binary()):
        yield f"{kind}", {"img": pa.array(files, kind), "label": label}, two
    text = [b64encode(each).decode() for each in files]
    yield "Base64", {"img": text, "label": label}, two
    yield (
        "data URI",
        {"img": [f"data:image/png;base64,{each}" for each in text], "label": label},
        two,
    )
    yield "no Base64", {"img": ["?" * 9] * n, "label": label}, "neither Base64 nor"
    for width in (pa.uint8(), pa.int32(), pa.int64()):
        yield (
            f"lists of {width}",
            {"img": _lists([e.tolist() for e in grey], width, 2), "label": label},
            two,
        )
    last = [each[..., None].repeat(3, 2).tolist() for each in grey]
    first = [each[None].repeat(3, 0).tolist() for each in grey]
    yield "channels last", {"img": last, "label": label}, two
    yield "channels first", {"img": first, "label": label}, two
    yield (
        "flat lists",
        {"img": [each.ravel().tolist() for each in grey], "label": label},
        "height and width",
    )
    yield (
        "floats",
        {"img": [(each / 255).tolist() for each in grey], "label": label},
        "image_column",
    )
    yield (
        "levels above 255",
        {"img": [(each.astype(int) + 9).tolist() for each in grey], "label": label},
        "0 and 255",
    )
    yield "whole numbers as images", {"img": label, "label": label}, "image_column"
    yield (
        "text labels",
        {"img": hub, "label": [("cat", "dog")[r % 2] for r in range(n)]},
        ("cat", "dog"),
    )
    yield (
        "dictionary",
        {"img": hub, "label": pa.array(["b", "a"] * 6).dictionary_encode()},
        ("a", "b"),
    )
    yield "float labels", {"img": hub, "label": pa.array([0.0, 1.0] * 6)}, two
    yield "half labels", {"img": hub, "label": pa.array([0.0, 0.5] * 6)}, "whole numbers"
    yield "bool labels", {"img": hub, "label": pa.array([False, True] * 6)}, two
    yield "1-based", {"img": hub, "label": pa.array([1, 2] * 6)}, ("1", "2")
    yield "signs", {"img": hub, "label": pa.array([-1, 1] * 6)}, ("-1", "1")
    yield "far apart", {"img": hub, "label": pa.array([7, 10**6] * 6)}, ("7", "1000000")
    yield "a null", {"img": hub, "label": pa.array([0, 1] * 5 + [0, None])}, "row 11 has no label"
    yield "a -1", {"img": hub, "label": pa.array([0, 1] * 5 + [0, -1])}, "row 11 has no label"
    yield "nulls alone", {"img": hub, "label": pa.nulls(n)}, "label"
    yield "list labels", {"img": hub, "label": [[0]] * n}, "label_column"
    outside = pa.array([{"bytes": None, "path": "/etc/hostname"}] * n, STRUCT)
    yield "path outside", {"img": outside, "label": label}, "leads out of"
    nowhere = pa.array([{"bytes": None, "path": "nowhere.png"}] * n, STRUCT)
    yield "path to nothing", {"img": nowhere, "label": label}, "there is no"


def _lists(values: Any, width: pa.DataType, depth: int) -> pa.Array:
    kind = width
    for _ in range(depth):
        kind = pa.list_(kind)
    return pa.array(values, kind)


def outcome_of_kind(folder: Path, wanted: tuple[str, ...] | str) -> str | None:
    """What was wrong about the classes that were read, or about what was said."""
    from counterdoor.params import IngestParams
    from counterdoor.pipelines.ingest.nodes import ingest

    source = {"name": "parquet", "path": str(folder), "image_mode": "L"}
    params = IngestParams.model_validate({"source": source, "test_share": 0.3, "trusted_share": 0})
    try:
        read = ingest(params, 0)
    except ValueError as error:
        told = str(error)
        if isinstance(wanted, str) and wanted in told and "\n" not in told:
            return None if str(folder) in told else f"no file is named: {told}"
        return told
    found = tuple(read["info"]["class_names"])
    return None if found == wanted else f"classes {found}, not {wanted}"


def attempts(work: Path, least: int) -> Iterator[tuple[str, str | None]]:
    """Bombs first, then kinds; more of both with other sizes until there are enough."""
    return islice(_attempts(work, least), max(least, 0) or None)


def _attempts(work: Path, least: int) -> Iterator[tuple[str, str | None]]:
    tried = 0
    for seed in count():
        for number, (name, make, how) in enumerate(bombs(seed) if seed < 3 else ()):
            folder = work / f"bomb-{seed}-{number}"
            folder.mkdir()
            pq.write_table(make(), folder / "train.parquet", **how)
            yield name, outcome_of_bomb(folder)
            (folder / "train.parquet").unlink()
            tried += 1
        for number, (name, columns, wanted) in enumerate(kinds(seed)):
            folder = work / f"kind-{seed}-{number}"
            folder.mkdir()
            pq.write_table(pa.table(columns), folder / "train.parquet")
            yield name, outcome_of_kind(folder, wanted)
            tried += 1
        if tried >= least:
            return
