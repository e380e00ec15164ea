"""Images in Parquet files, above all of the Hugging Face image layout."""

import json
import logging
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from counterdoor.component import Place
from counterdoor.names import class_name, plain, shown
from counterdoor.sources.base import FileSource, ImageSet, image_set
from counterdoor.sources.cells import contents, is_image, value_of
from counterdoor.sources.decoding import Content, Decoded, Rejected, read_images
from counterdoor.sources.footer import BYTE_ARRAY, Chunk, read_footer
from counterdoor.sources.parts import TESTED, Part, part_of

logger = logging.getLogger(__name__)

BATCH = 500
"""Rows that are read at once, at most."""

SMALL = 64_000_000
"""Bytes, unpacked, up to which a column is taken as it is, however well it is packed."""

PACKED = 1000
"""Times that a larger column may be packed: pictures never are, claims of a damaged file are."""

FEW = 10_000
"""So many rows are taken as they are; more must have a byte each, at least."""

IMAGE_COLUMNS = ("img", "image", "images", "picture", "pixels")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "category", "y")


class Parquet(FileSource):
    """Images in Parquet of the Hugging Face layout: a folder of train*, test*.parquet, or one file.

    The image column is a struct of ``bytes`` (an encoded image) and ``path``, bytes, a path
    below the file's folder, Base64, or nested lists of levels in [0, 255]. Labels are whole
    numbers or text. Files name the class names of their numbers themselves; classes are put
    together by name. Without names every value is a class of its own. Rows labelled -1, or
    not at all, have no label.

    Parts are known by the usual spellings in the names of files, or of folders, whatever the
    case. Of test, evaluation and validation part the first that has labels is the test part.

    Attributes:
        path: the folder, or a file, which is then the training part.
        image_column: name of the image column; one of the usual names is found by itself.
        label_column: name of the label column; one of the usual names is found by itself.
        limit: read only the first so many training rows, 0 = all.
    """

    name: Literal["parquet"] = "parquet"
    path: Place
    image_column: str = "img"
    label_column: str = "label"
    limit: int = Field(default=0, ge=0, le=10**9)

    def __call__(self) -> ImageSet:
        """Read and decode the training files, and the test files where there are any.

        Raises:
            ValueError: naming the file: if there is none, a column is missing or of a kind
                that is not known, class names are missing or there twice, an image cannot be
                decoded or has no label and these are not skipped, the images differ in size
                and none is set, or the file claims more than can be in it.
        """
        place = Path(self.path)
        parts, notes = find_parts(place)
        tables = [self._table(file) for file in parts.get("train", ())]
        if not sum(len(table.codes) for table in tables):
            raise ValueError(
                f"{shown(self.path)} has no train*.parquet with rows in it; check "
                "ingest.source.path"
            )
        classes, told = name_classes(tables)
        notes += told
        train, unlabelled = self._read(tables, classes, self.limit)
        tested: list[_Table] = []
        for part in TESTED:
            if part not in parts:
                continue
            if tested:
                notes.append(f"the {part} part is left out: another one is the test part")
                continue
            tables = [self._table(file) for file in parts[part]]
            if not any(classes.labelled(value) for table in tables for value in table.values):
                notes.append(f"the {part} part is left out: none of its rows has a label")
                continue
            tested = tables
            if part != "test":
                notes.append(f"the {part} part is read as the test part")
        test, more = self._read(tested, classes, 0) if tested else (None, [])
        read = image_set(classes.names, train, test)
        notes += [note for decoded in (train, test) if decoded for note in decoded.notes]
        rejected = (*read.rejected, *unlabelled, *more)
        return replace(read, rejected=rejected, notes=tuple(notes))

    def _table(self, file: Path) -> "_Table":
        """A file's columns and labels, after a look whether it can be what it claims."""
        import pyarrow.parquet as pq

        with _readable(file):
            schema = pq.read_schema(file)
            features, columns = _features(schema.metadata), list(schema.names)
        images = self._column(file, columns, features, "image_column", IMAGE_COLUMNS)
        labels = self._column(file, columns, features, "label_column", LABEL_COLUMNS)
        kind = schema.field(images).type
        if not is_image(kind):
            raise ValueError(
                f"{shown(file)}: the column {images!r} is of type {_brief(kind)}, from which no "
                "image is read; it may be a struct of bytes and path, bytes, text (a path or "
                "Base64), or nested lists of whole numbers. Set ingest.source.image_column"
            )
        with _readable(file):
            sizes = _check_claims(file, (images, labels))
        names = _class_names(features.get(labels), file)
        with _readable(file):
            codes, values = _read_labels(file, labels)
        return _Table(file, images, codes, _label_values(values, file, labels), names, sizes)

    def _column(
        self,
        file: Path,
        columns: Sequence[str],
        features: dict[str, Any],
        field: str,
        usual: Sequence[str],
    ) -> str:
        """The column that is meant: the one that is set, or else the only one that can be."""
        given = str(getattr(self, field))
        if given in columns:
            if columns.count(given) > 1:
                raise ValueError(f"{shown(file)} has several columns {given!r}; rename them")
            return given
        wanted = "Image" if field == "image_column" else "ClassLabel"
        told = [name for name in columns if _type(features.get(name)) == wanted]
        found = told or [name for name in columns if name.lower() in usual]
        if field in self.model_fields_set or len(found) != 1:
            raise ValueError(
                f"{shown(file)} has no column {given!r}, only {_brief(columns)}; set "
                "ingest.source.image_column and ingest.source.label_column"
            )
        logger.info("%s: %s is %r", shown(file), field.replace("_", " "), found[0])
        return str(found[0])

    def _read(
        self, tables: Sequence["_Table"], classes: "Classes", limit: int
    ) -> tuple[Decoded, list[Rejected]]:
        """The images of these files that have a label, and what has none."""
        place = Path(self.path)
        root = place.parent if place.is_file() else place
        unlabelled, labels = [], []
        for table in tables:
            own = classes.of(table)
            for row in np.flatnonzero(own < 0).tolist():
                name = _row(table.file, root, row)
                if self.on_corrupt == "fail":
                    raise ValueError(
                        f"{shown(root / name)} has no label; remove it, or set "
                        "ingest.source.on_corrupt=skip"
                    )
                unlabelled.append(Rejected(name, "it has no label"))
            labels.append(own)
        rows = sum(int((own >= 0).sum()) for own in labels)
        rows = min(rows, limit) if limit else rows
        decoded = read_images(
            islice(self._cells(tables, labels, root), rows),
            rows,
            self.form,
            root=str(root),
            on_corrupt=self.on_corrupt,
        )
        return decoded, unlabelled

    def _cells(
        self, tables: Sequence["_Table"], labels: Sequence[np.ndarray], root: Path
    ) -> Iterator[tuple[str, Content, int]]:
        import pyarrow.parquet as pq

        for table, own in zip(tables, labels, strict=True):
            row = 0
            with (
                _readable(table.file),
                pq.ParquetFile(table.file, read_dictionary=table.sizes.dictionaries) as opened,
            ):
                for batch in opened.iter_batches(table.sizes.batch, columns=[table.images]):
                    for content in contents(batch.column(0), table.file.parent):
                        if row == len(own):
                            break
                        if own[row] >= 0:
                            yield _row(table.file, root, row), content, int(own[row])
                        row += 1
            if row < len(own):
                raise ValueError(
                    f"{shown(table.file)} has {row:,} images, but {len(own):,} labels: it is "
                    "damaged; get it again, or take it out"
                )


@dataclass(frozen=True)
class _Sizes:
    """How a file's image column is read, so that little is in memory at a time."""

    batch: int
    dictionaries: list[str]


@dataclass(frozen=True)
class _Table:
    """A file and its labels.

    ``codes`` has for each row the place of its label in ``values``, -1 where there is none;
    a value is a whole number, text, or ``None`` where it is no label.
    """

    file: Path
    images: str
    codes: np.ndarray
    values: list[int | str | None]
    names: tuple[str, ...]
    sizes: _Sizes


@dataclass(frozen=True)
class Classes:
    """Class names, and what a number without a name stands for.

    Attributes:
        names: one name a class.
        first: what the first class is numbered, where files have class names.
        signed: whether -1 is a class, as in data of two classes, and not "no label".
    """

    names: tuple[str, ...]
    first: int = 0
    signed: bool = False

    def labelled(self, value: int | str | None) -> bool:
        """Whether a value of a label column says which class it is."""
        return value is not None and (self.signed or value != -1)

    def name_of(self, value: int | str, table: _Table) -> str:
        """The class that a value of this file's label column stands for.

        Raises:
            ValueError: if the file names no such class.
        """
        if isinstance(value, str):
            return class_name(value)
        if not table.names:
            return str(value)
        if not self.first <= value < self.first + len(table.names):
            raise ValueError(
                f"{shown(table.file)} has the label {value}, but it names {len(table.names)} "
                f"classes, whose labels run from {self.first} to "
                f"{self.first + len(table.names) - 1}"
            )
        return table.names[value - self.first]

    def of(self, table: _Table) -> np.ndarray:
        """The class of each row, int64; -1 without a label.

        Raises:
            ValueError: if a class is not one of these.
        """
        places = {name: place for place, name in enumerate(self.names)}
        found = np.full(len(table.values) + 1, -1, np.int64)  # the last is that of no value
        for code, value in enumerate(table.values):
            if value is None or not self.labelled(value):
                continue
            name = self.name_of(value, table)
            if name not in places:
                raise ValueError(
                    f"{shown(table.file)} has images of class {name!r}, which the training part "
                    f"has not; its classes are {_brief(list(self.names))}"
                )
            found[code] = places[name]
        rows: np.ndarray = found[table.codes]
        return rows


def find_parts(place: Path) -> tuple[dict[Part, list[Path]], list[str]]:
    """The files of each part, and what somebody should know of the others.

    Args:
        place: a file, or a folder with files, or with one folder that has them, or with a
            folder a part.

    Raises:
        ValueError: if there are several folders with files, none of which is a part.
    """
    if place.is_file():
        return {"train": [place]}, []
    found = _files_in(place)
    parts: dict[Part, list[Path]] = {}
    if found:
        spelt = [(file, _part_of_file(file.stem)) for file in found]
    else:
        inner = sorted(each for each in place.glob("*") if each.is_dir() and each.name[0] != ".")
        filled = [each for each in inner if _files_in(each)]
        if not any(part_of(each.name) for each in filled):
            if len(filled) > 1:
                raise ValueError(
                    f"{shown(place)} has several folders of Parquet files: "
                    f"{', '.join(shown(each.name) for each in filled)}; set ingest.source.path to "
                    "one of them"
                )
            return find_parts(filled[0]) if filled else ({}, [])
        spelt = [(file, part_of(each.name)) for each in filled for file in _files_in(each)]
    others = [file for file, part in spelt if part is None]
    for file, part in spelt:
        if part is not None:
            parts.setdefault(part, []).append(file)
    if not parts:
        word = "it is" if len(others) == 1 else f"all {len(others)} are"
        told = f"no file in {shown(place)} is named after a part: {word} read as the training part"
        return {"train": others}, [told]
    left = [f"{shown(file)} is left out: it is not named after a part" for file in others]
    return parts, left


def _files_in(folder: Path) -> list[Path]:
    return sorted(
        each
        for each in folder.glob("*")
        if each.suffix.lower() in (".parquet", ".pq") and each.name[0] != "." and each.is_file()
    )


def _part_of_file(stem: str) -> Part | None:
    """By the first word that names a part: ``train-00000-of-00001``, ``mnist_test``."""
    words = re.split(r"[^A-Za-z]+", stem)
    return next((part for part in map(part_of, words) if part), None)


def name_classes(tables: Sequence[_Table]) -> tuple[Classes, list[str]]:
    """The classes of the training files, and what somebody should know about their labels.

    Raises:
        ValueError: if some files name their classes and others do not.
    """
    numbers = {v for each in tables for v in each.values if isinstance(v, int)}
    signed = numbers == {-1, 1}
    numbers -= set() if signed else {-1}
    texts = {v for each in tables for v in each.values if isinstance(v, str)}
    named = [each for each in tables if each.names]
    for each in tables:
        if (named or texts) and not each.names and numbers.intersection(each.values):
            other = (named or [t for t in tables if any(isinstance(v, str) for v in t.values)])[0]
            raise ValueError(
                f"{shown(each.file)} numbers its classes without naming them, while "
                f"{shown(other.file)} names them: which number is which class is not known. Put "
                "the class names into its metadata, or make its labels text"
            )
    if named:
        ordered = dict.fromkeys(name for each in named for name in each.names)
        ordered |= dict.fromkeys(sorted(map(class_name, texts)))
        one_based = 0 not in numbers and any(len(each.names) in each.values for each in named)
        note = "labels run from 1, and so do the class names: 1 is the first of them"
        return Classes(tuple(ordered), int(one_based)), [note] * one_based
    if texts:
        return Classes(tuple(sorted(set(map(class_name, texts))))), []
    values = sorted(numbers)
    told = []
    if values != list(range(len(values))):
        whole = values == list(range(1, len(values) + 1))
        listed = _brief(values)
        told = [
            f"labels run from 1 to {len(values)}: class {values[0]} is the first"
            if whole
            else f"labels are not 0 to {len(values) - 1}: each value is a class, {listed}"
        ]
    return Classes(tuple(map(str, values)), signed=signed), told


def _row(file: Path, root: Path, row: int) -> str:
    return f"{plain(file.relative_to(root).as_posix())}, row {row}"


def _read_labels(file: Path, column: str) -> tuple[np.ndarray, list[Any]]:
    """Of each row the place of its label, -1 if it is null, and the labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = pq.read_table(file, columns=[column]).column(0)
    if not (pa.types.is_dictionary(labels.type) or _is_label(labels.type)):
        raise ValueError(
            f"{shown(file)}: the column {column!r} is of type {_brief(labels.type)}; labels are "
            "whole numbers or text. Set ingest.source.label_column"
        )
    if pa.types.is_null(labels.type):
        return np.full(len(labels), -1), []
    if not pa.types.is_dictionary(labels.type):
        labels = labels.dictionary_encode()
    whole = labels.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.chunk(0)
    codes = whole.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    values = [value_of(each) for each in whole.dictionary]
    if len(codes) and not -1 <= codes.min() <= codes.max() < len(values):
        raise IndexError("labels that its dictionary has not")
    return codes, values


def _is_label(kind: Any) -> bool:
    import pyarrow as pa

    kinds = pa.types
    checks = (
        *(kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_null),
        *(kinds.is_string, kinds.is_large_string),
    )
    return any(check(kind) for check in checks)


def _label_values(values: list[Any], file: Path, column: str) -> list[int | str | None]:
    """Labels as whole numbers or text; ``None`` where one is missing."""
    found: list[int | str | None] = []
    for value in values:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            found.append(None)
        elif isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
            found.append(int(value))
        elif isinstance(value, str) and len(value) <= 255:
            found.append(value)
        else:
            raise ValueError(
                f"{shown(file)}: a label in column {column!r} is {shown(_brief(value))}; labels "
                "must be whole numbers, or text of at most 255 characters"
            )
    return found


def _check_claims(file: Path, columns: Sequence[str]) -> "_Sizes":
    """How the first of these columns is best read.

    Raises:
        ValueError: if one claims more than can be in a file of this size.
    """
    size = file.stat().st_size
    try:
        rows, chunks = read_footer(file)
    except ValueError as error:
        raise ValueError(_damaged(file, str(error))) from error
    if rows > max(FEW, size):
        raise ValueError(
            f"{shown(file)} claims {rows:,} rows, but has {size:,} bytes: it is damaged, or made "
            "to fill your memory"
        )
    for column in columns:
        whole = sum(_claimed(chunk) for chunk in chunks if chunk.path[0] == column)
        if whole > max(SMALL, PACKED * size):
            raise ValueError(
                f"{shown(file)} claims {whole:,} bytes of column {column!r}, but has {size:,} "
                "bytes: it is damaged, or made to fill your memory"
            )
    own = [chunk for chunk in chunks if chunk.path[0] == columns[0]]
    largest = max((_claimed(chunk) for chunk in own), default=0)
    a_row = max((_claimed(chunk) / max(chunk.rows, 1) for chunk in own), default=0.0)
    dictionaries = {
        ".".join(chunk.path)
        for chunk in own
        if chunk.kind == BYTE_ARRAY and len(chunk.path) < 3 and largest <= SMALL
    }
    return _Sizes(max(1, min(BATCH, int(SMALL / max(a_row, 1.0)))), sorted(dictionaries))


def _claimed(chunk: Chunk) -> int:
    """Bytes that a chunk takes in memory, about: a number takes at least four with its place."""
    return max(chunk.size, 4 * chunk.values)


def _damaged(file: Path, told: str) -> str:
    return (
        f"{shown(file)} cannot be read as Parquet: {shown(told[:300])}. It is damaged, or no "
        "Parquet file: get it again, or take it out"
    )


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """What Arrow says of a file that it cannot read, in words that name the file."""
    import pyarrow as pa

    try:
        yield
    except (
        *(pa.ArrowException, OSError, MemoryError, OverflowError),
        *(LookupError, UnicodeDecodeError),  # of parts that do not go together
    ) as error:
        told = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(_damaged(file, told)) from error


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """What the schema's ``huggingface`` metadata says of the columns; empty without it."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _type(feature: Any) -> Any:
    return feature.get("_type") if isinstance(feature, dict) else None


def _class_names(feature: Any, file: Path) -> tuple[str, ...]:
    """The class names of a column; empty if it has none.

    Raises:
        ValueError: if two classes have the same name.
    """
    told = feature.get("names") if isinstance(feature, dict) else None
    names = tuple(class_name(str(name)) for name in told) if isinstance(told, list) else ()
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"{shown(file)} names two classes {twice!r} in its metadata; give each its own name"
        )
    return names


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
