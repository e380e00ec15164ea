"""Read a source, split it, and mark the trusted samples."""

import logging
from typing import Any

import numpy as np
import pandas as pd

from counterdoor.component import SIDE
from counterdoor.content import content_hash
from counterdoor.duplicates import held_out_again
from counterdoor.ledger import new_ledger, stratified_rows
from counterdoor.names import plain, shown
from counterdoor.params import IngestParams
from counterdoor.seeding import numpy_generator
from counterdoor.sources import ImageSet

logger = logging.getLogger(__name__)


def ingest(params: IngestParams, seed: int) -> dict[str, Any]:
    """Read the images of a source and split them.

    Args:
        params: source and shares.
        seed: the run's seed.

    Returns:
        ``images`` and ``test_images``, uint8 (N, C, H, W); ``ledger`` with
        ``sample_id``, ``label``, ``trusted``; ``test_ledger`` with ``sample_id``,
        ``label``; ``files`` with ``sample_id`` and ``file``, where each training image was
        read; ``rejected`` with ``file`` and ``reason``, what the source left out;
        ``info``: class names, shape, counts, content hash, and notes on how it was read.
        Files are named as :func:`counterdoor.names.plain` writes them.

    Raises:
        ValueError: if the source or the trusted images cannot be read, labels and class
            names do not agree, or a class has too few images to be split.
    """
    data = params.source()
    for note in data.notes:
        logger.warning("%s", note)
    _check(data)
    known = _read_trusted(params, data) if params.trusted_path is not None else None
    images, labels = data.images_nchw, data.labels
    files = np.array(data.files or [f"image {row}" for row in range(len(images))], dtype=object)
    drawn = data.test_images_nchw is None or data.test_labels is None
    if data.test_images_nchw is None or data.test_labels is None:
        test_rows = stratified_rows(labels, params.test_share, numpy_generator(seed, "ingest/test"))
        test_labels, labels = labels[test_rows], np.delete(labels, test_rows)
        files = np.delete(files, test_rows)
        images, test_images = _split(images, test_rows)
    else:
        test_images, test_labels = data.test_images_nchw, data.test_labels
    for part, kept in (("training", labels), ("test", test_labels)):
        counts = np.bincount(kept, minlength=len(data.class_names))
        if counts.min() == 0:
            name = data.class_names[int(counts.argmin())]
            remedy = f"; add images of it{', or take the test part out' * (part == 'test')}"
            if drawn:
                remedy = " after the split; add images of it, or change ingest.test_share"
            raise ValueError(f"class {name!r} has no {part} image{remedy}")
    again, otherwise = held_out_again(images, labels, test_images, test_labels)
    if again:
        told = (
            f"{again:,} of {len(test_labels):,} held-out pictures are there in the training part "
            f"as well, pixel for pixel, {otherwise:,} of them under another label"
        )
        logger.warning("%s", told)
    trusted = np.zeros(len(labels), dtype=bool)
    rejected, notes = data.rejected, (*data.notes, *([told] if again else []))
    if known is None:
        generator = numpy_generator(seed, "ingest/trusted")
        trusted[stratified_rows(labels, params.trusted_share, generator)] = True
    else:
        images = np.concatenate([images, known.images_nchw])
        labels = np.concatenate([labels, known.labels])
        files = np.concatenate([files, known.files or []])
        trusted = np.arange(len(labels)) >= len(trusted)
        rejected, notes = (*rejected, *known.rejected), (*notes, *known.notes)
    return {
        "images": images,
        "ledger": new_ledger(labels, trusted),
        "test_images": test_images,
        "test_ledger": new_ledger(test_labels, np.zeros(len(test_labels), bool))[
            ["sample_id", "label"]
        ],
        "files": pd.DataFrame(
            {"sample_id": np.arange(len(files)), "file": pd.array(files, dtype="string")}
        ),
        "rejected": pd.DataFrame(rejected, columns=["file", "reason"], dtype="string"),
        "info": {
            "source": params.source.name,
            "class_names": list(data.class_names),
            "image_shape": [int(size) for size in images.shape[1:]],
            "n_train": len(images),
            "n_test": len(test_images),
            "n_trusted": int(trusted.sum()),
            "n_rejected": len(rejected),
            "content_hash": content_hash(images, labels, test_images, test_labels),
            "notes": list(notes),
        },
    }


def _read_trusted(params: IngestParams, data: ImageSet) -> ImageSet:
    """All images at the trusted path, both parts as one, labelled by the data's class names.

    Their rejected files are named with the path.
    """
    where = plain(str(params.trusted_path))
    changed: dict[str, object] = {"path": params.trusted_path}
    if params.source.image_size == "auto":
        changed["image_size"] = data.images_nchw.shape[2:]
    read: ImageSet = params.source.model_copy(update=changed)()
    for note in read.notes:
        logger.warning("trusted images: %s", note)
    if unknown := sorted(set(read.class_names) - set(data.class_names)):
        raise ValueError(
            f"the trusted images in {shown(where)} have classes that the data has not: "
            f"{', '.join(map(shown, unknown))}; its classes are "
            f"{', '.join(map(shown, data.class_names))}. Rename them, or take them out"
        )
    if read.images_nchw.shape[1:] != data.images_nchw.shape[1:]:
        raise ValueError(
            f"the trusted images in {shown(where)} have shape {read.images_nchw.shape[1:]} and the "
            f"others {data.images_nchw.shape[1:]} (channels, height, width); set "
            "ingest.source.image_size"
        )
    images, labels, files = read.images_nchw, read.labels, read.files or ()
    if read.test_images_nchw is not None and read.test_labels is not None:
        images = np.concatenate([images, read.test_images_nchw])
        labels = np.concatenate([labels, read.test_labels])
        files = (*files, *(f"test image {row}" for row in range(len(read.test_labels))))
    place = np.array([data.class_names.index(name) for name in read.class_names])
    rejected = tuple(each._replace(file=f"{where}/{each.file}") for each in read.rejected)
    named = tuple(f"{where}/{file}" for file in files)
    return ImageSet(
        images, place[labels], data.class_names, rejected=rejected, files=named, notes=read.notes
    )


def _split(images: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rest and ``rows``, of an array that is ours: the rest moves up within it.

    A copy of the rest would for a while take as much memory again.
    """
    taken = images[rows]
    rest = np.delete(np.arange(len(images)), rows)
    for start in range(0, len(rest), 1024):
        block = rest[start : start + 1024]  # each row moves towards the front, if at all
        images[start : start + len(block)] = images[block]
    return images[: len(rest)], taken


def _check(data: ImageSet) -> None:
    classes = len(data.class_names)
    if classes < 2:
        hint = "".join(f". {note[0].upper()}{note[1:]}" for note in data.notes)
        raise ValueError(f"the source has {classes} class; a classifier needs at least two{hint}")
    if len(set(data.class_names)) < classes or not all(data.class_names):
        raise ValueError(
            f"the source's classes are named {list(data.class_names)}; each needs a name of its own"
        )
    if max(data.images_nchw.shape[2:]) > SIDE:
        raise ValueError(
            f"the images have shape {data.images_nchw.shape[1:]} (channels, height, width), more "
            f"than {SIDE} pixels a side; set ingest.source.image_size"
        )
    for labels in (data.labels, data.test_labels):
        if labels is not None and (labels.min() < 0 or labels.max() >= classes):
            raise ValueError(
                f"labels run from {labels.min()} to {labels.max()}, but there are {classes} class "
                "names; labels must be 0..K-1"
            )
