"""From image files to uint8 arrays of one size and mode; every source decodes here."""

import io
import logging
import os
import stat
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from counterdoor.names import shown

logger = logging.getLogger(__name__)
progress = logging.getLogger("counterdoor.sources.progress")
"""Gets a record a few times a second, level DEBUG, ``extra={"progress": {...}}`` with
``stream``, ``done``, ``total`` and ``rate`` (images per second)."""

FORMATS = ("JPEG", "PNG", "WEBP", "PPM", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000")
"""What is read; not, for example, EPS, for which Pillow runs an interpreter."""

MAX_PIXELS = 89_478_485
"""Images with more pixels, by their header, are not decoded; Pillow's own limit (256 MB of RGB)."""

LARGE = 8_000_000
"""Images with more pixels are decoded one at a time: several copies of each are in memory."""

MAX_TEXT = 16_000_000
"""Bytes that one text of a PNG may take, unpacked; with more it is not read. Pillow takes 1 MB."""

DEPTHS = (8, 12)
"""Bits that scanners and cameras put into files of 16: levels that fit are taken for such."""

GAP = 3
"""Before the resampling, images are shrunk by whole factors to no less than so many times their
final size; from 3 on the result is that of resampling alone, says Pillow's documentation."""

WINDOW, CHUNK, MAX_THREADS = 256, 8, 16
TICK_SECONDS = 0.25

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes an EXIF orientation; from 5 on, height and width change places."""

_one_large = threading.Lock()


class UnreadableError(ValueError):
    """An image that cannot be decoded; the message is the reason."""


Content = Path | bytes | np.ndarray | UnreadableError
"""An image: a file, its bytes, its pixels, uint8 of shape (C, H, W), or why there are none."""


class Rejected(NamedTuple):
    """A file that was left out: its path within the source's root, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Form:
    """What every image is brought to.

    Attributes:
        size: height and width in pixels; ``None`` leaves the size as it is.
        mode: ``L`` (grey, ITU-R 601 luma) or ``RGB``.
        resize: ``crop`` keeps the aspect ratio and cuts off what is too much on both
            sides, ``squash`` does not keep it.
        background: levels in [0, 255] that show through transparent pixels.
    """

    size: tuple[int, int] | None = None
    mode: Literal["L", "RGB"] = "RGB"
    resize: Literal["crop", "squash"] = "crop"
    background: tuple[int, int, int] = (255, 255, 255)

    @property
    def channels(self) -> int:
        """1 or 3."""
        return 1 if self.mode == "L" else 3


@dataclass
class Decoded:
    """Images that were read.

    Attributes:
        images_nchw: uint8, shape (N, C, H, W), in [0, 255].
        labels: int64, shape (N,).
        names: of the images.
        rejected: what was left out, in order.
        rejected_labels: the label of each of those.
        notes: what somebody should know about the others, a sentence each.
    """

    images_nchw: np.ndarray
    labels: np.ndarray
    names: list[str] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    rejected_labels: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_images(
    items: Iterable[tuple[str, Content, int]],
    total: int,
    form: Form,
    *,
    root: str = "",
    on_corrupt: Literal["skip", "fail"] = "fail",
) -> Decoded:
    """Decode images on all cores into one array, in the order given.

    Args:
        items: name, content and label of each image; taken as they are needed.
        total: how many there are.
        form: what they are brought to.
        root: the folder that the names are relative to, for messages.
        on_corrupt: whether an image that cannot be decoded is left out or an error.

    Raises:
        ValueError: naming the image that cannot be decoded and why, unless these are
            skipped; if ``form`` leaves the sizes as they are and they differ; or if so
            many do not fit into memory.
    """
    images, labels = np.empty((0, 0, 0, 0), np.uint8), np.empty(total, np.int64)
    result, kept = Decoded(images, labels), 0
    remarks: dict[str, list[str]] = {}
    with _strict_pillow(), ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_THREADS)) as pool:
        for window in _told(items, total):
            if not len(images) and (shape := _shape(window, form)):
                images = _room(total, shape, root)
            places = images[kept : kept + len(window)]
            outcomes = _decode_window(pool, window, form, places)
            reasons = [reason for reason, _ in outcomes]
            for (name, _, _), (_, remark) in zip(window, outcomes, strict=True):
                if remark:
                    remarks.setdefault(remark, []).append(name)
            for (name, _, label), reason in zip(window, reasons, strict=True):
                if reason and on_corrupt == "fail":
                    raise ValueError(
                        f"the image {shown(Path(root, name))} cannot be decoded: {reason}. Remove "
                        "or replace it, or set ingest.source.on_corrupt=skip"
                    )
                if reason:
                    result.rejected.append(Rejected(name, reason))
                    result.rejected_labels.append(label)
            good = [row for row, reason in enumerate(reasons) if not reason]
            if good and len(good) < len(window):
                places[: len(good)] = places[good]
            labels[kept : kept + len(good)] = [window[row][2] for row in good]
            result.names += [window[row][0] for row in good]
            kept += len(good)
    if result.rejected:
        logger.warning(
            "%d of %d files in %s cannot be decoded and are left out, the first is %s: %s",
            *(len(result.rejected), total, *map(shown, (root, *result.rejected[0]))),
        )
    result.notes = [
        f"{len(files):,} of {total:,} pictures: {remark}; the first is {shown(files[0])}"
        for remark, files in remarks.items()
    ]
    result.images_nchw, result.labels = images[:kept], labels[:kept]
    return result


def conform(images_nchw: np.ndarray, form: Form) -> np.ndarray:
    """Images that are decoded already, brought to a form; themselves if they have it.

    Args:
        images_nchw: uint8, shape (N, C, H, W), C of 1 or 3.
        form: what they are brought to.
    """
    size = tuple(images_nchw.shape[2:])
    if images_nchw.shape[1] == form.channels and form.size in (None, size):
        return images_nchw
    items = ((f"image {row}", image, 0) for row, image in enumerate(images_nchw))
    return read_images(items, len(images_nchw), form).images_nchw


def decode(content: Content, form: Form) -> np.ndarray:
    """One image as uint8, shape (C, H, W), in [0, 255]; the first frame of several.

    Transparent pixels show the form's background, 16-bit levels are scaled to 8 bit (those
    that all fit into one of :data:`DEPTHS` as levels of so many bits), the EXIF orientation is
    applied, CMYK is converted without a colour profile. The size is changed by antialiased
    bicubic resampling, of a JPEG image much larger than its final size after decoding at a
    half, quarter or eighth.

    Raises:
        UnreadableError: with the reason.
    """
    return _decode(content, form)[0]


def common_size(contents: Iterable[Content]) -> tuple[int, int] | None:
    """Height and width that all images have, as they are shown; ``None`` if they differ.

    Only headers are read. What cannot be read does not count.
    """
    found: tuple[int, int] | None = None
    with _strict_pillow():
        for content in contents:
            try:
                with _open(content) as image:
                    size = image.size[::-1]
                    if image.getexif().get(ExifTags.Base.Orientation, 1) in range(5, 9):
                        size = image.size
            except Exception:  # on damaged files Pillow raises nearly anything
                logger.debug("no size can be read of %s", content)
                continue
            if found not in (None, size):
                return None
            found = size
    return found


def _decode(content: Content, form: Form) -> tuple[np.ndarray, str]:
    """As :func:`decode`; also what somebody should know about how it was read, or ``""``."""
    try:
        with _open(content) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UnreadableError(f"{width}x{height} are more than {MAX_PIXELS} pixels")
            small = form.size and image.draft(None, 2 * (max(form.size) * GAP,))
            large = image.size[0] * image.size[1] > LARGE
            with _one_large if large else nullcontext():
                deep_colour = image.mode[0] not in "IF" and "16" in _raw_mode(image)
                image.load()
                extent = small[1][2:] if small else image.size
                orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
                plain, remark = _flatten(image, form)
                if deep_colour and 0 < max(_peaks(image)) < 16:
                    remark = (
                        "their 16-bit colours use at most 12 bits, of which only the highest are "
                        "read, so that they are nearly black; convert them to 8 bits"
                    )
                if form.size:
                    size = form.size[::-1] if orientation in range(5, 9) else form.size
                    plain = _resized(plain, extent, size, form.resize)
                if orientation in _TURNS:
                    plain = plain.transpose(_TURNS[orientation])
    except (UnreadableError, MemoryError):
        raise
    except Exception as error:  # on damaged files Pillow raises nearly anything
        raise UnreadableError(_reason(error)) from error
    pixels = np.asarray(plain)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), remark


def _raw_mode(image: Image.Image) -> str:
    """How the file holds its levels, such as ``RGB;16B``; ``""`` if that is not told."""
    tiles = getattr(image, "tile", [])
    told = tiles[0].args if tiles else ""
    return str(told[0] if isinstance(told, tuple) and told else told)


def _peaks(image: Image.Image) -> list[int]:
    """The highest level of each channel but transparency."""
    extrema = image.getextrema()
    several = extrema if isinstance(extrema[0], tuple) else (extrema,)
    kept = [ends for ends, band in zip(several, image.getbands(), strict=True) if band != "A"]
    return [int(high) for _, high in kept]


def _open(content: Content) -> Image.Image:
    if isinstance(content, UnreadableError):
        raise UnreadableError(str(content))
    known = [name for name in FORMATS if name in Image.OPEN]
    if isinstance(content, np.ndarray):
        grey = len(content) == 1
        return Image.fromarray(
            np.ascontiguousarray(content[0] if grey else content.transpose(1, 2, 0))
        )
    if isinstance(content, bytes):
        if not content:
            raise UnreadableError("it is empty")
        return Image.open(io.BytesIO(content), formats=known)
    try:
        status = content.stat()
    except FileNotFoundError:
        raise UnreadableError(
            "it is a link to nothing" if content.is_symlink() else "No such file or directory"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError("it is not a file")
    if not status.st_size:
        raise UnreadableError("it is empty")
    return Image.open(content, formats=known)


def _flatten(image: Image.Image, form: Form) -> tuple[Image.Image, str]:
    """Mode ``L`` or ``RGB``, 8 bit, nothing transparent; and what should be known about it."""
    remark = ""
    if image.mode == "F":
        raise UnreadableError("the range of its floating-point pixels is not known")
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        low, high = int(levels.min()), int(levels.max())
        if low < 0 or high > 65535:
            raise UnreadableError("the range of its 32-bit pixels is not known")
        bits = next((depth for depth in DEPTHS if 0 < high < 2**depth), 16)
        if bits < 16:
            remark = (
                f"their levels, of 16 bits each, are all below {2**bits} and were taken for levels "
                f"of {bits} bits; if that is wrong, convert them to 8 bits yourself"
            )
        most = 2**bits - 1
        scaled = ((np.arange(high + 1) * 255 + most // 2) // most).astype(np.uint8)
        image = Image.fromarray(scaled[levels])
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (*form.background, 255))
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    if image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    return image if image.mode == form.mode else image.convert(form.mode), remark


def _resized(
    image: Image.Image, extent: tuple[float, float], size: tuple[int, int], resize: str
) -> Image.Image:
    """``extent``: width and height of what is shown, up to a pixel less than the image has."""
    (width, height), (rows, columns) = extent, size
    left = top = 0.0
    if resize == "crop":
        scale = min(width / columns, height / rows)
        left, top = (width - scale * columns) / 2, (height - scale * rows) / 2
    box = (max(left, 0), max(top, 0), min(width - left, width), min(height - top, height))
    if image.size == (columns, rows) and box == (0, 0, columns, rows):
        return image
    return image.resize((columns, rows), Image.Resampling.BICUBIC, box, reducing_gap=GAP)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).rstrip(".") or type(error).__name__


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """No half images, whatever the process has set; no warnings about what is read all the same.

    Both are global, so this is set once, before threads start, and put back after them.
    """
    Image.init()
    lenient, text = ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_CHUNK
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    PngImagePlugin.MAX_TEXT_CHUNK = MAX_TEXT
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient
        PngImagePlugin.MAX_TEXT_CHUNK = text


def _told(
    items: Iterable[tuple[str, Content, int]], total: int
) -> Iterator[list[tuple[str, Content, int]]]:
    """The items in windows, with a progress record after some of them."""
    iterator, started, told, done = iter(items), time.monotonic(), 0.0, 0
    while window := list(islice(iterator, WINDOW)):
        yield window
        done += len(window)
        now = time.monotonic()
        if now - told > TICK_SECONDS or done == total:
            told = now
            rate = done / max(now - started, 1e-9)
            state = {"stream": "reading", "done": done, "total": total, "rate": rate}
            progress.debug("read %d of %d", done, total, extra={"progress": state})


def _room(total: int, shape: tuple[int, ...], root: str) -> np.ndarray:
    """An array for so many images.

    Raises:
        ValueError: if it would be larger than this machine's memory.
    """
    wanted = total * int(np.prod(shape, dtype=object))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        if wanted > memory:
            raise MemoryError
        return np.empty((total, *shape), np.uint8)
    except MemoryError:
        channels, height, width = shape
        raise ValueError(
            f"{total:,} images of {width}x{height} pixels and {channels} channels, from "
            f"{shown(root) or 'the source'}, take {wanted / 1e9:,.1f} GB, but this machine has "
            f"{memory / 1e9:,.1f} GB; set a smaller ingest.source.image_size"
        ) from None


def _shape(window: Sequence[tuple[str, Content, int]], form: Form) -> tuple[int, ...]:
    """Shape of the images, by the first that can be decoded; ``()`` if there is none."""
    if form.size:
        return (form.channels, *form.size)
    for _, content, _ in window:
        with suppress(UnreadableError):
            return decode(content, form).shape
    return ()


def _decode_window(
    pool: ThreadPoolExecutor,
    window: Sequence[tuple[str, Content, int]],
    form: Form,
    places: np.ndarray,
) -> list[tuple[str, str]]:
    """Decode into ``places``.

    Returns:
        Of each the reason if it cannot be decoded, and else what should be known about how it
        was; both are ``""`` where there is nothing to say.
    """

    def decode_chunk(start: int) -> list[tuple[str, str]]:
        outcomes = []
        for row in range(start, min(start + CHUNK, len(window))):
            name, content, _ = window[row]
            try:
                image, remark = _decode(content, form)
            except UnreadableError as error:
                outcomes.append((str(error), ""))
                continue
            if image.shape != places.shape[1:]:
                raise ValueError(
                    f"the images differ in size: {places.shape[1:]} and, at {shown(name)}, "
                    f"{image.shape}; set ingest.source.image_size"
                )
            places[row] = image
            outcomes.append(("", remark))
        return outcomes

    parts = pool.map(decode_chunk, range(0, len(window), CHUNK))
    return [outcome for part in parts for outcome in part]
