"""Images in Parquet files of the Hugging Face image layout."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from counterdoor.sources.base import FileSource, ImageSet, image_set
from counterdoor.sources.decoding import Content, Decoded, read_images

BATCH = 500
"""Rows that are read at once."""


class Parquet(FileSource):
    """Images in Parquet of the Hugging Face layout: a folder of train*, test*.parquet, or one file.

    The image column is a struct of ``bytes`` (an encoded image) and ``path``.

    Attributes:
        path: the folder, or a file, which is then the training part.
        image_column: name of the image column.
        label_column: name of the integer label column.
        limit: read only the first so many training rows, 0 = all.
    """

    name: Literal["parquet"] = "parquet"
    path: str
    image_column: str = "img"
    label_column: str = "label"
    limit: int = Field(default=0, ge=0)

    def __call__(self) -> ImageSet:
        """Read and decode the training files, and the test files where there are any.

        Raises:
            ValueError: if there is no file, a column is missing, an image cannot be
                decoded and these are not skipped, or the images differ in size and
                none is set.
        """
        place = Path(self.path)
        files = [place] if place.is_file() else sorted(place.glob("train*.parquet"))
        train, names = self._read(files, self.limit)
        if not len(train.images_nchw) and not train.rejected:
            raise ValueError(
                f"{self.path} has no train*.parquet with rows in it; check source.path"
            )
        tested = [] if place.is_file() else sorted(place.glob("test*.parquet"))
        test, _ = self._read(tested, 0)
        labels = [*train.labels.tolist(), *train.rejected_labels]
        names = names or tuple(str(label) for label in range(max(labels) + 1))
        return image_set(names, train, test if test.images_nchw.size or test.rejected else None)

    def _read(self, files: list[Path], limit: int) -> tuple[Decoded, tuple[str, ...]]:
        import pyarrow.parquet as pq

        schemas = [pq.read_schema(file) for file in files]
        for file, schema in zip(files, schemas, strict=True):
            for wanted in (self.image_column, self.label_column):
                if wanted not in schema.names:
                    raise ValueError(
                        f"{file} has no column {wanted!r}, only {schema.names}; "
                        "set source.image_column and source.label_column"
                    )
        named = (_class_names(schema.metadata, self.label_column) for schema in schemas)
        names = next((each for each in named if each), ())
        rows = sum(pq.read_metadata(file).num_rows for file in files)
        rows = min(rows, limit) if limit else rows
        root = Path(self.path)
        decoded = read_images(
            islice(self._cells(files), rows),
            rows,
            self.form,
            root=str(root.parent if root.is_file() else root),
            on_corrupt=self.on_corrupt,
        )
        return decoded, names

    def _cells(self, files: list[Path]) -> Iterator[tuple[str, Content, int]]:
        import pyarrow.parquet as pq

        columns = [self.image_column, self.label_column]
        for file in files:
            row = 0
            with pq.ParquetFile(file) as table:
                for batch in table.iter_batches(BATCH, columns=columns):
                    for record in batch.to_pylist():
                        place = f"{file.name}, row {row}"
                        cell: dict[str, Any] = record[self.image_column] or {}
                        label = _label(record[self.label_column], f"{file}, row {row}")
                        yield place, cell.get("bytes") or b"", label
                        row += 1


def _label(value: object, place: str) -> int:
    if not isinstance(value, int):
        raise ValueError(f"the label at {place} is {value!r}; labels must be whole numbers")
    return value


def _class_names(metadata: dict[bytes, bytes] | None, label_column: str) -> tuple[str, ...]:
    """Class names from the schema's ``huggingface`` metadata, empty if it has none."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label_column]["names"])
    except (KeyError, TypeError, ValueError):
        return ()
