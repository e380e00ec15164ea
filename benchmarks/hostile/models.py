"""Model files that somebody else could send: `kedro predict --model` has to refuse each.

A good file is changed in one named way at a time. Each is given to the command with one good
image, in this process, some by the real command too. Right is: exit code 1, no label, one line
on standard error that names the file, no traceback. The good file has to answer before and after.
"""

import copy
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save

from counterdoor.cli import cli
from counterdoor.hardened import Hardened
from counterdoor.io import HardenedDataset, TrainedNetDataset
from counterdoor.models import Compact, DigitsCNN, TrainedNet, build_net
from counterdoor.sources.decoding import Form
from counterdoor.stamp import Stamp

CLASSES = 4
SIDE = 16
SECONDS = 120
"""A command that takes longer hangs."""
BIG = 64 * 2**30
"""Bytes of a file that takes no room on the disk."""
GONE = object()
"""In the place of a value: the key is left out."""

Header = dict[str, Any]
State = dict[str, torch.Tensor]


def good(folder: Path) -> Path:
    """A file as `--pipelines export` writes it, of a small net with random weights."""
    images = np.random.default_rng(0).integers(0, 256, (32, 1, SIDE, SIDE)).astype(np.uint8)
    model = DigitsCNN(width=3, hidden=5)
    state = build_net(model, images, CLASSES, seed=0, stream="hostile").state_dict()
    net = TrainedNet.of(model, images, CLASSES, state, Stamp(size=3, colour=(0.5,)), (1, 2, 3, 0))
    about = {
        "data": {"content_hash": "abc", "n_train": 32},
        "configuration": {"seed": 0, "stamp": {"size": 3}},
        "figures": {"held_out_accuracy": 0.5},
    }
    form = Form((SIDE, SIDE), "L", "squash", (1, 2, 3))
    file = folder / "good.safetensors"
    HardenedDataset(filepath=str(file)).save(Hardened(net, ("a", "b", "c", "d"), form, about))
    return file


def parts(content: bytes) -> tuple[Header, dict[str, Header], bytes]:
    """A file's table of tensors, its two descriptions, and the bytes behind the header."""
    size = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + size])
    texts = {name: json.loads(text) for name, text in table.pop("__metadata__").items()}
    return table, texts, content[8 + size :]


def joined(table: Header, texts: dict[str, Any], body: bytes) -> bytes:
    """The reverse of :func:`parts`; a description may be text already."""
    told = {
        name: text if isinstance(text, str) else json.dumps(text) for name, text in texts.items()
    }
    header = json.dumps({"__metadata__": told, **table}).encode()
    return len(header).to_bytes(8, "little") + header + body


def placed(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of ``tree`` with ``value`` at ``path``."""
    if not path:
        return value
    changed = copy.copy(tree)
    if value is GONE and len(path) == 1:
        del changed[path[0]]
    else:
        inside = tree[path[0]] if len(path) > 1 else None
        changed[path[0]] = placed(inside, path[1:], value)
    return changed


NO_TEXT = [3, None, True, [], {}]
NO_COUNT = [0, -1, 2.5, 3.0, "3", True, None, [], {}, 10**9, 10**18, 10**30, float("nan")]
NO_PLACE = [-1, 2.5, "0", True, None, SIDE, 10**9, 10**30, float("inf")]
FIELDS: dict[tuple[str, tuple[Any, ...]], list[Any]] = {
    ("counterdoor", ("architecture",)): [GONE, None, [], "digits_cnn", {}, {"name": "resnet18"}],
    ("counterdoor", ("architecture", "name")): [GONE, "no_such", "compact", "os.system", *NO_TEXT],
    ("counterdoor", ("architecture", "width")): [4, *NO_COUNT],
    ("counterdoor", ("architecture", "hidden")): [6, *NO_COUNT],
    ("counterdoor", ("architecture", "more")): [1],
    ("counterdoor", ("image_shape",)): [
        *(GONE, None, 16, "1x16x16", [], [1, SIDE], [1, 1, SIDE, SIDE], {"C": 1}),
        *([SIDE, SIDE, 1], [1, 2, 2], [1, SIDE + 1, SIDE], [1, 5000, 5000]),
    ],
    ("counterdoor", ("image_shape", 0)): [3, *NO_COUNT],
    ("counterdoor", ("image_shape", 1)): [1, *NO_COUNT],
    ("counterdoor", ("image_shape", 2)): [1, *NO_COUNT],
    ("counterdoor", ("num_classes",)): [GONE, CLASSES - 1, CLASSES + 1, *NO_COUNT],
    ("counterdoor", ("stamp",)): [GONE, 3, "white", [], True],
    ("counterdoor", ("stamp", "size")): [SIDE + 1, *NO_COUNT],
    ("counterdoor", ("stamp", "row")): NO_PLACE,
    ("counterdoor", ("stamp", "column")): NO_PLACE,
    ("counterdoor", ("stamp", "colour")): [
        *("green", 3, None, [], [0.5, 0.5, 0.5], [2.0], [-0.5], ["0.5"], [True], [None]),
        *([float("nan")], [float("inf")], [10**400]),
    ],
    ("counterdoor", ("stamp", "more")): [1],
    ("counterdoor", ("label_map",)): [
        *([], [0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2, 2], [0, 1, 2, CLASSES], [-1, 0, 1, 2]),
        *(["0", "1", "2", "3"], [0.0, 1.0, 2.0, 3.0], [True, 0, 2, 3], 3, "0123", {"0": 1}, True),
        *([0, 1, 2, 10**30], [0, 1, 2, None], [[0], [1], [2], [3]]),
    ],
    ("counterdoor", ("mirror",)): [1, 0, "true", None, [], 2.0],
    ("counterdoor", ("more",)): [1],
    ("hardened", ("class_names",)): [
        *(GONE, None, 4, "abcd", [], ["a", "b", "c"], ["a", "b", "c", "d", "e"], {"a": 1}),
        *(["a", "b", "c", "a"], ["a", "b", "c", ""], ["a", "b", "c", 3], ["a", "b", "c", None]),
        *(["a", "b", "c", ["d"]], ["a", "b", "c", True], [f"{row}" for row in range(100_000)]),
    ],
    ("hardened", ("form",)): [GONE, None, [], "L", {}],
    ("hardened", ("form", "size")): [
        *(GONE, None, SIDE, [SIDE], [SIDE] * 3, [SIDE, SIDE + 1], [0, 0], [-1, SIDE], ["16", "16"]),
        *([16.0, 16.0], [True, True], [10**9, 10**9], [10**30, SIDE], [float("nan"), SIDE]),
    ],
    ("hardened", ("form", "mode")): [GONE, "RGB", "CMYK", "", *NO_TEXT],
    ("hardened", ("form", "resize")): [GONE, "stretch", "", *NO_TEXT],
    ("hardened", ("form", "background")): [
        *(GONE, None, 0, [], [0, 0], [0] * 4, [0, 0, 256], [0, 0, -1], [0, 0, 0.5], ["0", 0, 0]),
        *([True, 0, 0], [0, 0, 10**30], [0, 0, float("nan")]),
    ],
    ("hardened", ("form", "more")): [1],
    ("hardened", ("about",)): [GONE, None, [], "text", 3],
    ("hardened", ("about", "data")): [None, [], "text"],
    ("hardened", ("about", "configuration")): [None, [], "text"],
    ("hardened", ("about", "figures")): [None, [], {"held_out_accuracy": "0.5"}],
    ("hardened", ("about", "figures", "held_out_accuracy")): [float("nan"), None, True, [], "1"],
    ("hardened", ("about", "more")): [1],
    ("hardened", ("reject_column",)): [GONE, None, 1, "true", []],
    ("hardened", ("more",)): [1],
}
"""For each field of the two descriptions what it cannot be."""


def fields(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Descriptions with one value that no good file has."""
    table, texts, body = parts(content)
    for (name, path), values in FIELDS.items():
        for value in values:
            told = "left out" if value is GONE else ascii(value)[:40]
            where = ".".join([name, *map(str, path)])
            changed = placed(texts[name], path, value)
            yield f"{where} is {told}", joined(table, texts | {name: changed}, body)


def descriptions(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Descriptions that are no JSON, or JSON that two readers would read differently."""
    table, texts, body = parts(content)
    for name in texts:
        whole = json.dumps(texts[name])
        kinds = {
            "left out": None,
            "empty": "",
            "text": "hello",
            "cut off": whole[:-5],
            "a list": "[1]",
            "null": "null",
            "followed by more": whole + "{}",
            "two keys alike": whole[:-1] + f', "{next(iter(texts[name]))}": null}}',
            "nested 100,000 times": "[" * 100_000 + "]" * 100_000,
            "nested 50 times": whole[:-1] + ', "more": ' + "[" * 50 + "]" * 50 + "}",
            "a number of 5,000 digits": whole[:-1] + ', "more": ' + "9" * 5000 + "}",
            "NaN": whole[:-1] + ', "more": NaN}',
            "1e999": whole[:-1] + ', "more": 1e999}',
        }
        for kind, text in kinds.items():
            others = {each: value for each, value in texts.items() if each != name}
            told = others if text is None else others | {name: text}
            yield f"{name}: {kind}", joined(table, told, body)
    yield "a third description", joined(table, texts | {"more": "1"}, body)
    for side in (1, 2):  # less than the net takes, in every place
        net = texts["counterdoor"] | {"image_shape": [1, side, side], "stamp": None}
        form = texts["hardened"]["form"] | {"size": [side, side]}
        small = {"counterdoor": net, "hardened": texts["hardened"] | {"form": form}}
        yield f"images of {side} pixels a side", joined(table, small, body)
    deep: Any = 1
    for _ in range(60):
        deep = {"a": deep}
    changed = placed(texts["hardened"], ("about", "data"), deep)
    yield "about nested 60 times", joined(table, texts | {"hardened": changed}, body)


def code(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Architectures that name code."""
    table, texts, body = parts(content)
    for target in ("os.system", "subprocess.run", "torch.nn.Linear", "no.such.module"):
        for arguments in ({}, {"command": "touch HOSTILE", "args": ["touch", "HOSTILE"]}):
            architecture = {"name": "external", "target": target, "arguments": arguments}
            changed = texts["counterdoor"] | {"architecture": architecture}
            name = f"code {target}, {len(arguments)} arguments"
            yield name, joined(table, texts | {"counterdoor": changed}, body)


def weights(content: bytes, file: Path) -> Iterator[tuple[str, bytes]]:
    """Tensors that are not those of the net, or no numbers."""
    _, texts, _ = parts(content)
    state = dict(HardenedDataset(filepath=str(file)).load().net.state)
    told = {name: json.dumps(text) for name, text in texts.items()}

    def written(changed: State) -> bytes:
        return save({name: each.contiguous() for name, each in changed.items()}, told)

    for name, tensor in state.items():
        yield f"{name} is missing", written({k: v for k, v in state.items() if k != name})
        wider = torch.cat([tensor.reshape(-1), tensor.reshape(-1)])
        yield f"{name} is twice as long", written(state | {name: wider})
        other = torch.float16 if tensor.is_floating_point() else torch.int32
        yield f"{name} is {other}", written(state | {name: tensor.to(other)})
        if tensor.is_floating_point():
            for value in (float("nan"), float("inf"), -float("inf")):
                spoilt = tensor.clone()
                spoilt.reshape(-1)[-1] = value
                yield f"{name} has {value}", written(state | {name: spoilt})
    for name, values in {"std": (0.0, -1.0), "mean": (-0.1, 1.1, 255.0)}.items():
        for value in values:
            yield f"{name} is {value}", written(state | {name: torch.full_like(state[name], value)})
    for name in (each for each in state if each.endswith("running_var")):
        yield f"{name} is negative", written(state | {name: -state[name] - 1})
    huge = {
        k: v * 1e38 if v.is_floating_point() and k.startswith("body") else v
        for k, v in state.items()
    }
    huge = {
        name: each.clamp(-3e38, 3e38) if each.is_floating_point() else each
        for name, each in huge.items()
    }
    yield "weights of 1e38", written(huge)
    yield "one tensor more", written(state | {"body.more": torch.zeros(3)})
    yield "an empty tensor more", written(state | {"body.more": torch.zeros(0)})
    yield "no tensor", written({})
    yield "a tensor renamed", written({f"x{k}" if k == "std" else k: v for k, v in state.items()})
    images = np.zeros((2, 1, SIDE, SIDE), np.uint8)
    for model in (Compact(widths=(3, 4, 5)), DigitsCNN(width=4, hidden=5)):
        net = build_net(model, images, CLASSES, seed=0, stream="hostile")
        yield f"weights of {model.name}, {model.model_dump()}"[:60], written(net.state_dict())


def tables(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Headers whose entries do not say what lies behind them."""
    table, texts, body = parts(content)
    name = "body.0.weight"
    begin, end = table[name]["data_offsets"]
    for key, values in {
        "shape": [GONE, None, [], [-1], [10**9, 10**9], [10**30], [2.0], "3", [True], [27]],
        "dtype": [GONE, None, "F16", "F8_E4M3", "X", "I32", 3, ["F32"]],
        "data_offsets": [
            *(GONE, None, [], [0], [begin, end + 4], [end, begin], [-4, end], [0, 10**30]),
            *([begin + 1, end + 1], [0.0, 4.0], [begin, begin], ["0", "4"]),
        ],
        "more": [1],
    }.items():
        for value in values:
            told = "left out" if value is GONE else ascii(value)
            yield (
                f"{name}'s {key} is {told}",
                joined(placed(table, (name, key), value), texts, body),
            )
    yield "an entry is a list", joined(table | {name: []}, texts, body)
    alike = table | {name: table["body.4.weight"]}
    yield "two tensors share their bytes", joined(alike, texts, body)
    for extra in (b"x", b"x" * 4096, pickle.dumps([1])):
        yield f"{len(extra)} bytes behind the last tensor", joined(table, texts, body + extra)
    header = json.dumps({"__metadata__": {k: json.dumps(v) for k, v in texts.items()}, **table})
    for kind, text in {
        "an entry twice": header[:-1] + f', "{name}": {json.dumps(table[name])}' + "}",
        "metadata twice": header[:-1] + ', "__metadata__": {}}',
        "metadata null": header.replace('"__metadata__": {', '"__metadata__": null, "x": {', 1),
        "metadata a number": json.dumps({"__metadata__": {"counterdoor": 3}, **table}),
        "no metadata": json.dumps(table),
        "the header a list": "[]",
        "the header nested": "[" * 50_000 + "]" * 50_000,
        "the header NaN": header[:-1] + ', "x": NaN}',
    }.items():
        yield kind, len(text).to_bytes(8, "little") + text.encode() + body
    text = header.encode().replace(b"content_hash", b"content_\xff\xfe_", 1)
    yield "a header that is not UTF-8", len(text).to_bytes(8, "little") + text + body


def bytes_(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Files that are cut off, damaged or of another kind."""
    size = int.from_bytes(content[:8], "little")
    for length in (0, 1, 7, 8, 9, 8 + size // 2, 8 + size, len(content) // 2, len(content) - 1):
        yield f"cut off after {length} bytes", content[:length]
    for length in (0, 1, size - 1, size + 1, 10**8, 2**31, 2**63 - 1, 2**63, 2**64 - 1):
        told = length.to_bytes(8, "little")
        yield f"a header of {length} bytes", told + content[8:]
    big = b"{" + b" " * (8 * 2**20) + b"}"
    yield "a header of 8 MiB of blanks", len(big).to_bytes(8, "little") + big
    many = ("[" + "[]," * 10**6 + "[]]").encode()
    yield "a header of a million lists", len(many).to_bytes(8, "little") + many
    box = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, box)
    yield "torch.save", box.getvalue()
    box = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, box, _use_new_zipfile_serialization=False)
    yield "torch.save, the old way", box.getvalue()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield f"a pickle, protocol {protocol}", pickle.dumps(Trap(), protocol)
    box = io.BytesIO()
    with zipfile.ZipFile(box, "w") as archive:
        archive.writestr("good.safetensors", content)
    yield "a zip of the good file", box.getvalue()
    box = io.BytesIO()
    np.save(box, np.zeros(3))
    yield "NumPy", box.getvalue()
    for kind, told in {"text": b"hello\n" * 50, "JSON": b"{}", "HTML": b"<html></html>"}.items():
        yield kind, told
    yield "an image", (Path(__file__).parents[2] / "docs/dag.png").read_bytes()
    yield "zeros", bytes(4096)
    yield "noise", np.random.default_rng(1).bytes(4096)
    yield "reversed", content[::-1]


class Trap:
    """Leaves a file behind if it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("touch HOSTILE",)


def files(work: Path, content: bytes) -> Iterator[tuple[str, Path]]:
    """Every hostile file, written one after the other, and things that are no files."""
    source = work / "good.safetensors"
    made = work / "hostile.safetensors"
    for group in (
        fields(content),
        descriptions(content),
        code(content),
        weights(content, source),
        tables(content),
        bytes_(content),
    ):
        for name, told in group:
            made.write_bytes(told)
            yield name, made
    plain = HardenedDataset(filepath=str(source)).load().net
    TrainedNetDataset(filepath=str(made)).save(replace(plain, label_map=None))
    yield "a trained net that was not exported", made
    for kind, head in {"64 GiB of nothing": b"", "64 GiB of zero weights": sparse(content)}.items():
        with made.open("wb") as file:
            file.write(head)
            file.truncate(len(head) + BIG)
        yield kind, made
    made.unlink()
    yield "nothing there", made
    made.symlink_to(work / "nowhere")
    yield "a link to nothing", made
    made.unlink()
    made.symlink_to(made)
    yield "a link to itself", made
    made.unlink()
    os.mkfifo(made)
    yield "a pipe", made
    made.unlink()
    made.symlink_to("/dev/zero")
    yield "a device", made
    made.unlink()
    yield "a folder", work
    with socket.socket(socket.AF_UNIX) as server:
        place = work / "s"
        server.bind(str(place))
        yield "a socket", place


def sparse(content: bytes) -> bytes:
    """The start of a file of :data:`BIG` more bytes, as its header says, in a single tensor."""
    table, texts, _ = parts(content)
    others = {name: entry | {"shape": [0], "data_offsets": [0, 0]} for name, entry in table.items()}
    whole = {"dtype": "F32", "shape": [BIG // 4], "data_offsets": [0, BIG]}
    return joined(others | {"body.12.weight": whole}, texts, b"")


def in_process(image: Path) -> Callable[[Path], tuple[int, str, str, str]]:
    """The command in this process: exit code, both outputs, and an error nobody expected."""

    def run(file: Path) -> tuple[int, str, str, str]:
        told = CliRunner().invoke(cli, ["predict", str(image), "--model", str(file)])
        error = told.exception
        raised = "" if error is None or isinstance(error, SystemExit) else repr(error)
        return told.exit_code, told.stdout, told.stderr, raised

    return run


def command(image: Path) -> Callable[[Path], tuple[int, str, str, str]]:
    """As :func:`in_process`, by the real command."""
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root / "src"), "DO_NOT_TRACK": "1"}
    kedro = Path(sys.executable).with_name("kedro")

    def run(file: Path) -> tuple[int, str, str, str]:
        told = subprocess.run(
            [kedro, "predict", str(image), "--model", str(file)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            cwd=root,
            env=environment,
            check=False,
        )
        return told.returncode, told.stdout, told.stderr, ""

    return run


def wrong(outcome: tuple[int, str, str, str], file: Path) -> str | None:
    """What is not right about how a hostile file was answered; ``None`` if nothing."""
    code, out, err, raised = outcome
    lines = err.strip().splitlines()
    if raised or "Traceback" in err + out:
        return f"traceback: {raised or lines[-1]}"
    if code != 1:
        return f"exit code {code}: {(err or out).strip()[:100]!r}"
    if out.strip():
        return f"an answer: {out.strip()[:100]!r}"
    if len(lines) != 1 or not err.strip().isprintable():
        return f"{len(lines)} lines: {err[:200]!r}"
    if file.name not in err or len(err) > 1000:
        return f"the file is not named, or the line is too long: {err[:200]!r}"
    return None


def answered(outcome: tuple[int, str, str, str]) -> str | None:
    """What is not right about how the good file was answered; ``None`` if nothing."""
    code, out, err, raised = outcome
    good = code == 0 and not raised and any(name in out for name in "abcd")
    return None if good else f"exit code {code}: {raised or err.strip()[:200]!r}"


def attempts(work: Path, least: int) -> Iterator[tuple[str, str | None]]:
    """Give every file to the command.

    Args:
        work: an empty folder to write in.
        least: how many there are at least; more are tried, since all are.

    Yields:
        Its name, and ``None`` or what was wrong.
    """
    image = work / "image.png"
    Image.fromarray(np.full((SIDE, SIDE), 128, np.uint8)).save(image)
    source = good(work)
    content = source.read_bytes()
    here, there = in_process(image), command(image)
    trap = work / "HOSTILE"
    before = Path.cwd()
    os.chdir(work)
    tried = 0
    try:
        yield "the good file", answered(here(source))
        link = work / "link.safetensors"
        link.symlink_to(source)
        yield "a link to the good file", answered(here(link))
        for name, file in files(work, content):
            ran = [here, there] if name in BY_COMMAND else [here]
            for way in ran:
                reason = wrong(way(file), file)
                if trap.exists():
                    trap.unlink()
                    reason = "it ran code of the file"
                tried += 1
                yield name if way is here else f"{name}, by the command", reason
        yield "the good file again", answered(there(source))
    finally:
        os.chdir(before)
    if tried < least:
        yield "enough of them", f"{tried} files, fewer than {least}"


BY_COMMAND = (
    "a pipe",
    "torch.save",
    "64 GiB of nothing",
    "counterdoor.architecture.width is 1000000000",
    "body.0.weight has nan",
)
