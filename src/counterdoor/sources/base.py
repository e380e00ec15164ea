"""What every source gives."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from counterdoor.component import SIDE, Component
from counterdoor.names import plain, shown
from counterdoor.sources.decoding import Decoded, Form, Rejected, read_images

Pixels = Annotated[int, Field(ge=1, le=SIDE)]
Level = Annotated[int, Field(ge=0, le=255)]
OnCorrupt = Literal["skip", "fail"]


@dataclass(frozen=True)
class ImageSet:
    """Labelled images; the test part is ``None`` where the source makes no split.

    Attributes:
        images_nchw: uint8, shape (N, C, H, W), in [0, 255].
        labels: int64, shape (N,), indices into ``class_names``.
        class_names: one name a class.
        test_images_nchw: as ``images_nchw``, or ``None``.
        test_labels: as ``labels``, or ``None``.
        rejected: files that could not be read and are left out, of both parts.
        files: what each of ``images_nchw`` was read from, below the source's path; ``None``
            where images are not told apart by name; see :mod:`counterdoor.names`.
        notes: what somebody should know about how it was read, such as parts that were left
            out; a sentence each.
    """

    images_nchw: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    test_images_nchw: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    rejected: tuple[Rejected, ...] = ()
    files: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


class SourceBase(Component):
    """A place that images come from.

    Attributes:
        image_size: height and width that every image is brought to, or one number for
            both; ``None`` leaves the size as it is.
        image_mode: ``L`` (grey) or ``RGB``.
        resize: ``crop`` keeps the aspect ratio and cuts off what is too much on both
            sides, ``squash`` does not keep it.
    """

    image_size: Pixels | tuple[Pixels, Pixels] | None = None
    image_mode: Literal["L", "RGB"] = "RGB"
    resize: Literal["crop", "squash"] = "crop"

    @property
    def form(self) -> Form:
        """What every image is brought to."""
        size = self.image_size
        pair = (size, size) if isinstance(size, int) else size
        return Form(pair, self.image_mode, self.resize)

    @abstractmethod
    def __call__(self) -> ImageSet:
        """Read the images; the arrays are the caller's to change.

        Raises:
            ValueError: naming what cannot be read and what to do.
        """


class FileSource(SourceBase):
    """A place with a file an image, of which some may be damaged.

    Attributes:
        background: levels of red, green and blue, in [0, 255], that show through
            transparent pixels.
        on_corrupt: whether a file that cannot be decoded is left out, and listed among
            the rejected, or is an error.
    """

    background: tuple[Level, Level, Level] = (255, 255, 255)
    on_corrupt: OnCorrupt = "fail"

    @property
    def form(self) -> Form:
        """What every image is brought to."""
        return replace(super().form, background=self.background)


def read_files(
    files: Sequence[tuple[Path, int]], form: Form, root: str, on_corrupt: OnCorrupt
) -> Decoded:
    """Decode files below ``root``, each given with its label; see :func:`read_images`."""
    items = [(plain(file.relative_to(root).as_posix()), file, label) for file, label in files]
    return read_images(items, len(items), form, root=root, on_corrupt=on_corrupt)


def image_set(names: tuple[str, ...], train: Decoded, test: Decoded | None) -> ImageSet:
    """Both parts as one set.

    Raises:
        ValueError: if one of the parts is empty, or all files of a class were rejected
            in it, or the parts differ in size.
    """
    for part, decoded in (("training", train), ("test", test)):
        if decoded is None:
            continue
        if lost := set(decoded.rejected_labels) - set(decoded.labels.tolist()):
            label = min(lost)
            name = names[label] if 0 <= label < len(names) else str(label)
            file, reason = decoded.rejected[decoded.rejected_labels.index(label)]
            raise ValueError(
                f"all {part} images of class {name!r} are damaged, the first is {shown(file)}: "
                f"{reason}; replace them, or take the class out"
            )
        if not len(decoded.labels):
            raise ValueError(f"there are no {part} images; check ingest.source.path")
    files = tuple(train.names)
    if test is None:
        rejected = tuple(train.rejected)
        return ImageSet(train.images_nchw, train.labels, names, rejected=rejected, files=files)
    if train.images_nchw.shape[1:] != test.images_nchw.shape[1:]:
        raise ValueError(
            f"training and test images differ in size: {train.images_nchw.shape[1:]} and "
            f"{test.images_nchw.shape[1:]}; set ingest.source.image_size"
        )
    return ImageSet(
        train.images_nchw,
        train.labels,
        names,
        test.images_nchw,
        test.labels,
        (*train.rejected, *test.rejected),
        files,
    )
