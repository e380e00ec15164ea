"""Images in Parquet files of the Hugging Face image layout."""

import io
import json
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from counterdoor.sources.base import ImageSet, SourceBase


class Parquet(SourceBase):
    """Images in Parquet of the Hugging Face layout: train*.parquet, test*.parquet in a directory.

    The image column is a struct of ``bytes`` (an encoded image) and ``path``.

    Attributes:
        path: the directory.
        image_column: name of the image column.
        label_column: name of the integer label column.
        image_mode: Pillow mode that every image is brought to.
        limit: read only the first so many training rows, 0 = all.
    """

    name: Literal["parquet"] = "parquet"
    path: str
    image_column: str = "img"
    label_column: str = "label"
    image_mode: Literal["L", "RGB"] = "RGB"
    limit: int = Field(default=0, ge=0)

    def __call__(self) -> ImageSet:
        """Read and decode the training files, and the test files where there are any.

        Raises:
            ValueError: if there is no file, a column is missing, an image cannot
                be decoded, or the images differ in size.
        """
        train, labels, names = self._read("train", self.limit)
        if not train.size:
            raise ValueError(
                f"{self.path} has no train*.parquet with rows in it; check source.path"
            )
        test, test_labels, _ = self._read("test", 0)
        classes = names or tuple(str(label) for label in range(int(labels.max()) + 1))
        if not test.size:
            return ImageSet(train, labels, classes)
        return ImageSet(train, labels, classes, test, test_labels)

    def _read(self, part: str, limit: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        import pyarrow.parquet as pq

        files = sorted(Path(self.path).glob(f"{part}*.parquet"))
        rows = sum(pq.read_metadata(file).num_rows for file in files)
        rows = min(rows, limit) if limit else rows
        images = np.empty((0, 0, 0, 0), np.uint8)
        labels = np.empty(rows, dtype=np.int64)
        names: tuple[str, ...] = ()
        read = 0
        for file in files:
            with pq.ParquetFile(file) as table:
                names = names or _class_names(table.schema_arrow.metadata, self.label_column)
                for wanted in (self.image_column, self.label_column):
                    if wanted not in table.schema_arrow.names:
                        raise ValueError(
                            f"{file} has no column {wanted!r}, only {table.schema_arrow.names}; "
                            "set source.image_column and source.label_column"
                        )
                columns = [self.image_column, self.label_column]
                first = read
                for batch in table.iter_batches(1000, columns=columns):
                    for row in batch.to_pylist()[: rows - read]:
                        place = f"{file}, row {read - first}"
                        image = self._decode(row[self.image_column], place)
                        if not images.size:
                            images = np.empty((rows, *image.shape), np.uint8)
                        if image.shape != images.shape[1:]:
                            raise ValueError(
                                f"the images in {self.path} differ in size: {images.shape[1:]} "
                                f"and, at {place}, {image.shape}"
                            )
                        images[read] = image
                        labels[read] = _label(row[self.label_column], place)
                        read += 1
        return images, labels, names

    def _decode(self, cell: dict[str, bytes], place: str) -> np.ndarray:
        from PIL import Image, UnidentifiedImageError

        if not cell or not cell.get("bytes"):
            raise ValueError(f"the image at {place} cannot be decoded: it has no image bytes")
        try:
            with Image.open(io.BytesIO(cell["bytes"])) as image:
                pixels = np.asarray(image.convert(self.image_mode))
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"the image at {place} cannot be decoded: {error}") from error
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


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
