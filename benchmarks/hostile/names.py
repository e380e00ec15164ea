"""Odd names of files and classes, from the folder to every place where they are shown.

Each name is that of a file and that of a class. What is read is written and shown as a run does
it: tables, the page of suspects, the model card, the verdict, figures, `kedro predict`.
"""

import csv
import io
import json
import logging
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner
from kedro.io import Version
from PIL import Image

from counterdoor import names, plots
from counterdoor.cli import cli
from counterdoor.hardened import Hardened, model_card
from counterdoor.io import CSVDataset, HardenedDataset, JSONDataset, ParquetDataset
from counterdoor.ledger import DROPPED
from counterdoor.models import DigitsCNN, TrainedNet, build_net
from counterdoor.params import IngestParams
from counterdoor.pipelines.export.nodes import list_suspects
from counterdoor.pipelines.ingest.nodes import ingest
from counterdoor.sources.decoding import Form
from counterdoor.suspects_page import render_suspects
from counterdoor.verdict import Judge

AT_ONCE = 12
"""Names in a folder."""

ODD = (
    *(b"\xff\xfe", b"caf\xe9", b"half \xc3", b"\xed\xa0\x80 lone", b"\x80\x81\x82"),
    *(b"[bold red]x", b"[@click=x]y", b"[link=http:x]", b":smile:", b"\\[x]"),
    *(b"\x1b[31mred", b"\x1b]0;title\x07", b"bell\x07", b"\x9b31m", b"back\x08\x08", b"\x7f"),
    *(b"new\nline", b"\rback", b"tab\tin", b"\ttab", b"\nfirst", b"a\r\nb", b"\x0bvt", b"\x0cff"),
    *(b"=1+1", b"=cmd|' c calc'!A1", b"@SUM(1)", b"+1-1", b"-2+3", b" =1", b"'=1", b"''=1"),
    *("＝1+1".encode(), "＠x".encode(), b"-1", b"+3", b"-", b"=", b"-rf", b"--help"),
    *(b"<script>alert(1)<", b"<img src=x onerror=y>", b"&lt;", b'"quoted"', b"it's", b"a,b;c"),
    *(b"$x^2$", b"$", b"$\\frac{", b"a_b_c", b"_x_", b"**b**", b"`code`", b"|", b"a|b|c"),
    *(b"[x](http:x)", b"#1", b"~~x~~", b"NA", b"nan", b"null", b"None", b"True", b"1e5", b"007"),
    *(
        b"\\xff",
        b"\\\\xff",
        b"\\u0041",
        b"back\\slash",
        b"%41",
        b"?x=1",
        b"*",
        b"{}",
        b"{0}",
        b"%s",
    ),
    *("日本語".encode(), "é".encode(), "e\u0301".encode(), "🙂👨\u200d👩".encode(), "ß".encode()),
    *("\u202egnp".encode(), "\u2028x".encode(), "\ufeffbom".encode(), "\u00a0x".encode()),
    *(b"n" * 200, b"x ", b" x", b"x..", b"con", b"a:b", b"~", b"!x", b"\\"),
)


def some(seed: int) -> Iterator[bytes]:
    """More names of any bytes that a file system takes."""
    generator = np.random.default_rng(seed)
    allowed = [byte for byte in range(1, 256) if byte != ord("/")]
    while True:
        name = bytes(generator.choice(allowed, int(generator.integers(1, 30))).astype(np.uint8))
        if not name.startswith(b"."):
            yield name


def folder_of(chosen: Sequence[bytes], root: Path) -> None:
    """A folder a class, called by each of the names, each with files called by all of them."""
    generator = np.random.default_rng(0)
    for name in chosen:
        place = root / os.fsdecode(name)
        place.mkdir(parents=True)
        for other in chosen:
            buffer = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (12, 12), dtype=np.uint8)).save(
                buffer, "PNG"
            )
            (place / os.fsdecode(other + b".png")).write_bytes(buffer.getvalue())


class Tags(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:  # noqa: ARG002, D102
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:  # noqa: D102
        self.text.append(data)


def safe_cell(cell: str) -> bool:
    """Whether a spreadsheet takes it for text or a number."""
    number = re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", cell)
    return bool(number) or not re.match(r"(?s)\s*[=+\-@＝＋－＠].|[\t\r\n]", cell)


def one_line(text: str) -> bool:
    """Whether nothing in it moves the cursor or turns the text round."""
    return not any(
        unicodedata.category(each) in ("Cc", "Cs") or each in "\u202e\u2028" for each in text
    )


def rows_of(text: str) -> list[dict[str, str]]:
    """A table, as a script reads it."""
    return list(csv.DictReader(io.StringIO(text, newline="")))


def problems(root: Path, chosen: Sequence[bytes]) -> dict[bytes, str]:
    """What goes wrong with which of the names; under b"" what takes all along."""
    wrong: dict[bytes, str] = {}
    folder = root / "data"
    files = {one + b"/" + two + b".png" for one in chosen for two in chosen}
    classes = {
        name: unicodedata.normalize("NFC", names.plain(os.fsdecode(name))) for name in chosen
    }

    def blame(name: bytes, text: str) -> None:
        wrong.setdefault(name, text)

    def check_files(told: Sequence[str], where: str) -> None:
        found = [os.path.normpath(os.fsencode(names.original(each))) for each in told]
        for each, stored in zip(found, told, strict=True):
            if each not in files:
                blame(each.split(b"/")[0], f"{where}: {stored!a} is no file")

    source = {"name": "image_folder", "path": str(folder), "image_mode": "L"}
    params = IngestParams.model_validate({"source": source, "test_share": 0.2, "trusted_share": 0})
    read = ingest(params, 0)
    info, ledger = read["info"], read["ledger"]
    for name, stored in classes.items():
        if stored not in info["class_names"]:
            blame(name, f"no class is called {stored!a}")

    def through(kind: Any, name: str, data: Any, **how: Any) -> Any:
        dataset = kind(filepath=str(root / name), version=Version(None, "v"), **how)
        dataset.save(data)
        return dataset.load()

    info = through(JSONDataset, "info.json", info)
    table = through(ParquetDataset, "files.parquet", read["files"])
    check_files(table["file"].tolist(), "files")
    generator = np.random.default_rng(1)
    labels = ledger["label"].to_numpy()
    pseudo = np.where(generator.random(len(labels)) < 0.1, DROPPED, np.roll(labels, 1))
    ledger = ledger.assign(
        score=generator.random(len(labels)),
        suspect=generator.random(len(labels)) < 0.5,
        pseudo_label=pseudo,
    )
    told = list_suspects(read["images"], ledger, table, info)
    listed = {name: told[name] for name in ("suspects", "cleaned")}
    text = {"file": str, "label": str, "pseudo_label": str}
    for name, found in listed.items():
        kept = {key: value for key, value in text.items() if key in found}
        how = {
            "save_args": {"index": False},
            "load_args": {"keep_default_na": False, "dtype": kept},
        }
        again = through(CSVDataset, f"{name}.csv", found, **how)
        if again["file"].tolist() != found["file"].tolist():
            blame(b"", f"{name}.csv is not read as it was written")
        raw = (root / f"{name}.csv" / "v" / f"{name}.csv").read_bytes().decode()
        rows = rows_of(raw)
        check_files([row["file"] for row in rows], f"{name}.csv")
        for row in rows:
            own = os.path.normpath(os.fsencode(names.original(row["file"]))).split(b"/")[0]
            if names.from_csv(row["label"]) != classes.get(own):
                blame(own, f"{name}.csv: {row['file']!a} has the label {row['label']!a}")
            if bad := [cell for cell in row.values() if not safe_cell(cell)]:
                blame(own, f"{name}.csv: {bad[0]!a} is a formula")
        listed[name] = again
    shown = (read["images"], ledger)
    stored_files = table["file"].tolist()
    page = render_suspects(*shown, listed["suspects"], info["class_names"], stored_files)
    page.encode("utf-8")
    (data,) = re.findall(r"const data = (\{.*\});", page)
    saved = json.loads(data)  # the button writes these cells, quoted
    check_files(saved["file"], "the page")
    for cell in (*saved["file"], *saved["label"]):
        if not safe_cell(cell):
            blame(b"", f"the page saves {cell!a}, a formula")
    plain_names = [f"class {number}" for number in range(len(info["class_names"]))]
    without = listed["suspects"].assign(file="x", label="x", pseudo_label="x", reason="x")
    plain = render_suspects(*shown, without, plain_names, stored_files)
    if tags_of(page).tags != tags_of(plain).tags:
        blame(b"", f"the page has tags of its names: {tags_of(page).tags - tags_of(plain).tags}")
    written = "".join(tags_of(page).text)
    for name, stored in classes.items():
        if names.shown(stored) not in written:
            blame(name, "the page does not show the class")

    judged = Judge(class_size=1)(ledger, info["class_names"], in_parts=True)
    for reason in judged.reasons:
        if not one_line(reason):
            blame(b"", f"the verdict says {reason!a}")
    accuracy = {"defended": np.linspace(0, 1, len(info["class_names"]))}
    plots.plot_class_accuracy(accuracy, info["class_names"], 0).savefig(io.BytesIO(), format="png")
    plots.plot_confusion(labels, {"net": np.roll(labels, 1)}, info["class_names"]).savefig(
        io.BytesIO(), format="png"
    )
    shown = plots.plot_suspects(read["images"], ledger, labels % 2 == 0, info["class_names"])
    shown.savefig(io.BytesIO(), format="png")

    model = DigitsCNN(width=2, hidden=4)
    net = build_net(model, read["images"], len(info["class_names"]), seed=0, stream="x")
    trained = TrainedNet.of(model, read["images"], len(info["class_names"]), net.state_dict(), None)
    about = {"data": {key: info[key] for key in ("source", "notes", "n_train")}}
    form = Form((12, 12), "L")
    hardened = Hardened(trained, tuple(info["class_names"]), form, about=about)
    card = model_card(hardened)
    if not one_line(card.replace("\n", "")) or "<" in card or "\n|\n" in card:
        blame(b"", "the model card has tags or broken rows")
    bare = replace(hardened, class_names=tuple(plain_names))
    if len(card.splitlines()) != len(model_card(bare).splitlines()):
        blame(b"", "the model card has more lines")
    file = root / "hardened.safetensors"
    HardenedDataset(filepath=str(file)).save(hardened)
    predicted(root, file, files, set(classes.values()), blame)
    return wrong


def tags_of(page: str) -> Tags:
    """The page, parsed."""
    parser = Tags()
    parser.feed(page)
    return parser


def predicted(root: Path, model: Path, files: set[bytes], classes: set[str], blame: Any) -> None:
    """`kedro predict` on all files, among which one is no image."""
    folder = root / "data"
    place = (folder / os.fsdecode(min(files))).parent
    (place / os.fsdecode(b"[red]\xff\n.png")).write_bytes(b"no image")
    for form in ("json", "csv", "markdown", "table"):
        done = CliRunner().invoke(
            cli, ["predict", str(folder), "--model", str(model), "--format", form]
        )
        if done.exit_code != 1 or (done.exception and not isinstance(done.exception, SystemExit)):
            blame(b"", f"predict --format {form}: exit code {done.exit_code}, {done.exception!a}")
            continue
        done.stdout.encode("utf-8")
        told = [line for line in done.stderr.splitlines() if "cannot be read" in line]
        if len(told) != 1 or not one_line(told[0]):
            blame(b"", f"predict says {done.stderr!a}")
        if form == "table":
            if not one_line(done.stdout.replace("\n", "")):
                blame(b"", "predict's table has control characters")
            continue
        if form == "markdown":
            if len(done.stdout.splitlines()) != len(files) + 2:
                blame(b"", "predict's Markdown has more rows than files")
            continue
        rows = json.loads(done.stdout) if form == "json" else rows_of(done.stdout)
        if len(rows) != len(files):
            blame(b"", f"predict --format {form} has {len(rows)} rows, not {len(files)}")
        for row in rows:
            name = os.path.relpath(os.fsencode(names.original(row["file"])), os.fsencode(folder))
            if name not in files:
                blame(name.split(b"/")[0], f"predict --format {form}: {row['file']!a} is no file")
            label = names.from_csv(row["label"]) if form == "csv" else row["label"]
            if label not in classes:
                blame(b"", f"predict --format {form}: {label!a} is no class")
            if form == "csv" and not (safe_cell(row["label"]) and safe_cell(row["file"])):
                blame(b"", f"predict: {row!a} is a formula")


def attempts(work: Path, least: int) -> Iterator[tuple[str, str | None]]:
    """The odd names, then any, so many at a time; each counts as a file and as a class."""
    wanted = max(least // 2 + 1, len(ODD))
    every = list(dict.fromkeys([*ODD, *islice(some(0), max(0, wanted - len(ODD)))]))
    tried = 0
    logging.getLogger("counterdoor.sources").setLevel(logging.ERROR)
    for start in range(0, len(every), AT_ONCE):
        chosen = every[start : start + AT_ONCE]
        if len(chosen) < 2:
            chosen = every[-2:]
        # two ways to write one name are one class, which is another matter: layouts.py
        own = {unicodedata.normalize("NFC", os.fsdecode(name)): name for name in chosen}
        chosen = list(own.values())
        root = work / f"names-{start}"
        root.mkdir()
        folder_of(chosen, root / "data")
        try:
            wrong = problems(root, chosen)
        except Exception as error:
            wrong = {b"": f"{type(error).__name__}: {error!a}"[:300]}
        for name in chosen:
            told = wrong.get(name) or wrong.get(b"")
            for kind in ("file", "class"):
                yield f"{kind} {name!r}", told
                tried += 1
                if tried == least:
                    return
