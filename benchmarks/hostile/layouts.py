"""Folders as downloads, disks and tools leave them: what is read of each, or what is said.

With COUNTERDOOR_CASES, a folder of generators of further cases, these are run as well: of each
that there is (layouts.py, parquet_kinds.py, mixed_formats.py, imbalance_conflict.py) everything
that it writes is read, or refused in one line.
"""

import json
import logging
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from counterdoor.duplicates import Duplicates
from counterdoor.params import IngestParams
from counterdoor.pipelines.ingest.nodes import ingest

ANIMALS = ("ant", "bee", "cow")


@dataclass
class Tree:
    """A folder that is filled, picture after picture, none of them twice."""

    root: Path
    seed: int
    made: int = 0

    def fill(
        self, *places: str, n: int = 6, levels: Callable[[np.ndarray], Any] | None = None
    ) -> None:
        """Pictures in each of these folders."""
        for place in places:
            folder = self.root / place
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(n):
                generator = np.random.default_rng((self.seed, self.made))
                pixels = generator.integers(0, 256, (12, 12), dtype=np.uint8)
                image = Image.fromarray(levels(pixels) if levels else pixels)
                image.save(folder / f"{number:03}.png")
                self.made += 1

    def classes(self, place: str, names: tuple[str, ...] = ANIMALS, n: int = 6) -> None:
        """A folder a class below ``place``."""
        self.fill(*(f"{place}/{name}" for name in names), n=n)


@dataclass(frozen=True)
class Wanted:
    """What is right: classes and counts, words in the notes, or words of a refusal."""

    classes: tuple[str, ...] = ANIMALS
    n: int | None = None
    test: int | None = None
    notes: tuple[str, ...] = ()
    refused: str | None = None
    rejected: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


def cases() -> Iterator[tuple[str, Callable[[Tree], None], Wanted]]:
    """Layouts, each with what is right."""
    spellings = [
        ("train", "test", ()),
        ("Train", "Test", ()),
        ("TRAINING", "TESTING", ()),
        ("Training", "Testing", ()),
        ("training_set", "test_set", ()),
        ("trainData", "testData", ()),
        ("seg_train", "seg_test", ()),
        ("train2017", "val2017", ("test part",)),
        ("train", "valid", ("test part",)),
        ("train", "Validation", ("test part",)),
        ("train", "val", ("test part",)),
        ("train", "dev", ("test part",)),
        ("train", "eval", ("test part",)),
    ]
    for train, test, notes in spellings:

        def two(tree: Tree, train: str = train, test: str = test) -> None:
            tree.classes(train)
            tree.classes(test, n=3)

        yield f"{train} and {test}", two, Wanted(n=18, test=9, notes=notes)

    def three(tree: Tree) -> None:
        two(tree, "train", "test")
        tree.classes("valid", n=2)

    yield "three parts", three, Wanted(n=18, test=9, notes=("valid is left out",))

    def same(tree: Tree) -> None:
        two(tree, "train", "Training")

    yield "two training parts", same, Wanted(refused="both a train part")
    yield "no training part", lambda tree: tree.classes("Test"), Wanted(refused="no train/")

    def flat(tree: Tree) -> None:
        tree.classes("train")
        tree.fill("test")

    yield "unlabelled test part", flat, Wanted(n=15, test=3, notes=("test is left out",))

    def beside(tree: Tree) -> None:
        two(tree, "train", "test")
        tree.fill("annotations")

    yield "a folder beside the parts", beside, Wanted(n=18, notes=("annotations is left out",))

    def missing(tree: Tree) -> None:
        tree.classes("train")
        tree.classes("test", ANIMALS[:2])

    yield "a class missing in test", missing, Wanted(refused="'cow' has no test image")

    def unknown(tree: Tree) -> None:
        tree.classes("train", ANIMALS[:2])
        tree.classes("test")

    yield "a class missing in train", unknown, Wanted(refused="has not: cow")

    def loose(tree: Tree) -> None:
        tree.classes(".")
        tree.fill(".", n=2)

    yield "pictures in no class", loose, Wanted(n=15, notes=("2 pictures lie in",))

    def masks(tree: Tree) -> None:
        tree.fill(*(f"{name}/{kind}" for name in ANIMALS for kind in ("images", "masks")))

    yield "masks", masks, Wanted(notes=("images, masks",))

    def wrapped(tree: Tree) -> None:
        tree.classes("archive")

    yield "wrapped", wrapped, Wanted(refused="archive")
    for junk in ("@eaDir", "__MACOSX", ".ipynb_checkpoints", ".git", "$RECYCLE.BIN", "lost+found"):

        def littered(tree: Tree, junk: str = junk) -> None:
            tree.classes("train")
            tree.classes("test", n=3)
            for place in (".", "train", "test", "train/ant"):
                tree.fill(f"{place}/{junk}", n=2)

        yield f"{junk} everywhere", littered, Wanted(n=18, test=9)

    def files(tree: Tree) -> None:
        tree.classes(".")
        for name in ("Thumbs.db", ".DS_Store", "ant/Thumbs.db", "ant/._000.png", "desktop.ini"):
            (tree.root / name).write_bytes(b"\0\5\x16\7")

    yield "junk files", files, Wanted(n=15, rejected=("ant/Thumbs.db",))

    def accents(tree: Tree) -> None:
        for part, form in (("train", "NFC"), ("test", "NFD")):
            names = tuple(unicodedata.normalize(form, name) for name in ("thé", "café"))
            tree.classes(part, names)  # type: ignore[arg-type]

    yield "two ways to write é", accents, Wanted(classes=("café", "thé"), n=12, test=12)

    def both(tree: Tree) -> None:
        tree.classes(".", ("bee", *(unicodedata.normalize(f, "café") for f in ("NFC", "NFD"))))

    yield "é both ways in one part", both, Wanted(classes=("bee", "café"), notes=("several ways",))

    def linked(tree: Tree, there: str = "../elsewhere", name: str = "train/dog") -> None:
        two(tree, "train", "test")
        (tree.root / "../elsewhere").mkdir(exist_ok=True)
        Image.new("L", (12, 12), tree.seed % 256).save(tree.root / "../elsewhere/secret.png")
        (tree.root / name).symlink_to(tree.root / there)

    follow = {"follow_links": True}
    yield "a class that is a link outside", linked, Wanted(refused="follow_links=true")
    outside = ("train/ant/out.png",)
    yield (
        "a picture that is a link outside",
        lambda tree: linked(tree, "../elsewhere/secret.png", outside[0]),
        Wanted(n=18, notes=("follow_links=true",), rejected=outside),
    )
    yield (
        "the same, followed",
        lambda tree: linked(tree, "../elsewhere/secret.png", outside[0]),
        Wanted(n=19, settings=follow),
    )
    yield (
        "a folder in a class that is a link outside",
        lambda tree: linked(tree, "../elsewhere", "train/ant/deep"),
        Wanted(n=18, notes=("follow_links=true",), rejected=("train/ant/deep",)),
    )
    for place in (".", "..", "/"):
        yield (
            f"a loop to {place}",
            lambda tree, place=place: linked(
                tree, f"train/{place}" if place != "/" else "train/ant", "train/ant/loop"
            ),
            Wanted(),
        )
    for name, target in (("nothing", "nowhere.png"), ("itself", "train/ant/out.png")):
        yield (
            f"a link to {name}",
            lambda tree, target=target: linked(tree, target, outside[0]),
            Wanted(n=18, rejected=outside),
        )

    def pipe(tree: Tree) -> None:
        tree.classes(".")
        os.mkfifo(tree.root / "ant" / "pipe.png")

    yield "a pipe", pipe, Wanted(n=15, rejected=("ant/pipe.png",))
    for bits in (8, 12):

        def deep(tree: Tree, bits: int = bits) -> None:
            scale = (2**bits - 1) / 255
            tree.fill(*ANIMALS, levels=lambda pixels: np.rint(pixels * scale).astype(np.uint16))

        yield f"{bits} bits in 16", deep, Wanted(n=15, notes=(f"{bits} bits",))


def outcome(folder: Path, wanted: Wanted) -> str | None:
    """What was wrong about what was read, or said."""
    source = {"name": "image_folder", "path": str(folder), "image_mode": "L", **wanted.settings}
    told, read = read_or_told(source)
    if read is None:
        if wanted.refused is None or wanted.refused not in told or "\n" in told:
            return f"refused: {told}"
        return None
    if wanted.refused is not None:
        return f"read, not refused: {read['info']}"
    info = read["info"]
    found = (tuple(info["class_names"]), info["n_train"], info["n_test"])
    right = (
        wanted.classes,
        info["n_train"] if wanted.n is None else wanted.n,
        info["n_test"] if wanted.test is None else wanted.test,
    )
    if found != right:
        return f"{found}, not {right}"
    if silent := [
        words for words in wanted.notes if not any(words in each for each in info["notes"])
    ]:
        return f"nothing is said of {silent}: {info['notes']}"
    rejected = set(read["rejected"]["file"])
    if rejected != set(wanted.rejected):
        return f"left out are {rejected}, not {wanted.rejected}"
    if read["images"].mean() < 64:
        return f"pictures are nearly black: {read['images'].mean():.0f}"
    return None


def read_or_told(source: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """What ingest reads, or what it says instead."""
    try:
        return "", ingest(
            IngestParams.model_validate({"source": source, "test_share": 0.2, "trusted_share": 0}),
            0,
        )
    except ValueError as error:
        return str(error), None


def further(scripts: Path, work: Path) -> Iterator[tuple[str, str | None]]:
    """What the generators in ``scripts`` write: read, or refused in a line that names it."""
    for name, kind in (("layouts", "image_folder"), ("parquet_kinds", "parquet")):
        for folder in written(scripts / f"{name}.py", work):
            source = {"name": kind, "path": str(folder), "image_mode": "L"}
            told, read = read_or_told(source)
            if read is None:
                yield f"{name}: {folder.name}", None if "\n" not in told else told
            else:
                bad = [
                    each
                    for each in read["info"]["class_names"]
                    if each.lower().startswith("t") and "rain" in each.lower()
                ]
                yield f"{name}: {folder.name}", f"classes {bad}" if bad else None
    for folder in written(scripts / "mixed_formats.py", work)[:1]:
        yield from mixed(folder.parent)
    for folder in written(scripts / "imbalance_conflict.py", work)[:1]:
        _, read = read_or_told(
            {"name": "image_folder", "path": str(folder.parent), "image_mode": "L"}
        )
        assert read is not None
        found = Duplicates.among(read["images"], read["ledger"]["label"].to_numpy())
        both = bool(found.conflicts) and bool(found.repeats)
        yield "imbalance_conflict", None if both else "no picture under two labels is found"


def written(script: Path, work: Path) -> list[Path]:
    """The folders that a generator makes; none if there is no such generator."""
    out = work / script.stem
    if not script.exists():
        return []
    out.parent.mkdir(exist_ok=True)
    subprocess.run([sys.executable, str(script), str(out)], check=True, capture_output=True)
    return sorted(each for each in out.iterdir() if each.is_dir())


def mixed(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Each file is read with the mean levels that its generator expects, or is listed."""
    expected = json.loads((folder / "expected.json").read_text())
    told, read = read_or_told({"name": "image_folder", "path": str(folder), "image_size": 32})
    if read is None:
        yield "mixed_formats", told
        return
    images = dict(zip(read["files"]["file"], read["images"], strict=True))
    rejected = set(read["rejected"]["file"])
    for name, wanted in expected.items():
        if wanted == "reject" or name not in images:
            told = "is read" if name in images else "is neither read nor listed"
            right = wanted == "reject" and (name in rejected or is_lab(folder / name))
            yield f"mixed_formats: {name}", None if right else told
            continue
        grey = images[name].astype(float).mean(0)
        quarter = len(grey) // 4
        strips = (grey[:, :quarter], grey[:, -quarter:], grey[:quarter], grey[-quarter:])
        off = max(abs(part.mean() - level) for part, level in zip(strips, wanted, strict=True))
        yield f"mixed_formats: {name}", f"off by {off:.0f} levels" if off > 12 else None


def is_lab(file: Path) -> bool:
    """Whether it is a picture in Lab colours, which are read: they have one meaning."""
    with Image.open(file) as image:
        return image.mode == "LAB"


def attempts(work: Path, least: int) -> Iterator[tuple[str, str | None]]:
    """All layouts with ever other pictures, then those of other generators."""
    logging.getLogger("counterdoor").setLevel(logging.ERROR)
    tried = 0
    for seed in count():
        for number, (name, fill, wanted) in enumerate(cases()):
            tree = Tree(work / f"layout-{seed}-{number}" / "data", seed)
            tree.root.mkdir(parents=True)
            fill(tree)
            yield name, outcome(tree.root, wanted)
            tried += 1
        if tried >= least:
            break
    if "COUNTERDOOR_CASES" in os.environ:
        yield from further(Path(os.environ["COUNTERDOOR_CASES"]), work / "further")
