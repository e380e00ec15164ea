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

        images: list[np.ndarray] = []
        labels: list[int] = []
        names: tuple[str, ...] = ()
        for file in sorted(Path(self.path).glob(f"{part}*.parquet")):
            with pq.ParquetFile(file) as table:
                names = names or _class_names(table.schema_arrow.metadata, self.label_column)
                for wanted in (self.image_column, self.label_column):
                    if wanted not in table.schema_arrow.names:
                        raise ValueError(
                            f"{file} has no column {wanted!r}, only {table.schema_arrow.names}; "
                            "set source.image_column and source.label_column"
                        )
                columns = [self.image_column, self.label_column]
                row_number = 0
                for batch in table.iter_batches(1000, columns=columns):
                    for row in batch.to_pylist():
                        if limit and len(images) == limit:
                            break
                        place = f"{file}, row {row_number}"
                        images.append(self._decode(row[self.image_column], place))
                        labels.append(_label(row[self.label_column], place))
                        row_number += 1
        sizes = {image.shape for image in images}
        if len(sizes) > 1:
            raise ValueError(f"the images in {self.path} differ in size: {sorted(sizes)[:5]}")
        stacked = np.stack(images) if images else np.empty((0, 0, 0, 0), np.uint8)
        return stacked, np.asarray(labels, dtype=np.int64), names

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
