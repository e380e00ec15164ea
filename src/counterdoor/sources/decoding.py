"""From image files to uint8 arrays of one size and mode; every source decodes here."""

import io
import logging
import os
import stat
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

logger = logging.getLogger(__name__)
progress = logging.getLogger("counterdoor.sources.progress")
"""Gets a record a few times a second, level DEBUG, ``extra={"progress": {...}}`` with
``stream``, ``done``, ``total`` and ``rate`` (images per second)."""

FORMATS = ("JPEG", "PNG", "WEBP", "PPM", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000")
"""What is read; not, for example, EPS, for which Pillow runs an interpreter."""

MAX_PIXELS = 89_478_485
"""Images with more pixels, by their header, are not decoded; Pillow's own limit (256 MB of RGB)."""

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

Content = Path | bytes | np.ndarray
"""An image: a file, its bytes, or its pixels, uint8 of shape (C, H, W)."""


class UnreadableError(ValueError):
    """An image that cannot be decoded; the message is the reason."""


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
    """

    images_nchw: np.ndarray
    labels: np.ndarray
    names: list[str] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    rejected_labels: list[int] = field(default_factory=list)


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
            skipped; or if ``form`` leaves the sizes as they are and they differ.
    """
    images, labels = np.empty((0, 0, 0, 0), np.uint8), np.empty(total, np.int64)
    result, kept = Decoded(images, labels), 0
    with _strict_pillow(), ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_THREADS)) as pool:
        for window in _told(items, total):
            if not len(images) and (shape := _shape(window, form)):
                images = np.empty((total, *shape), np.uint8)
            places = images[kept : kept + len(window)]
            reasons = _decode_window(pool, window, form, places)
            for (name, _, label), reason in zip(window, reasons, strict=True):
                if reason and on_corrupt == "fail":
                    raise ValueError(
                        f"the image {Path(root, name)} cannot be decoded: {reason}. Remove or "
                        "replace it, or set ingest.source.on_corrupt=skip"
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
            *(len(result.rejected), total, root, *result.rejected[0]),
        )
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

    Transparent pixels show the form's background, 16-bit levels are scaled to 8 bit, the
    EXIF orientation is applied, CMYK is converted without a colour profile. The size is
    changed by antialiased bicubic resampling, of a JPEG image much larger than its final
    size after decoding at a half, quarter or eighth.

    Raises:
        UnreadableError: with the reason.
    """
    try:
        with _open(content) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UnreadableError(f"{width}x{height} are more than {MAX_PIXELS} pixels")
            small = form.size and image.draft(None, 2 * (max(form.size) * GAP,))
            image.load()
            extent = small[1][2:] if small else image.size
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            plain = _flatten(image, form)
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
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _open(content: Content) -> Image.Image:
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
    status = content.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError("it is not a file")
    if not status.st_size:
        raise UnreadableError("it is empty")
    return Image.open(content, formats=known)


def _flatten(image: Image.Image, form: Form) -> Image.Image:
    """Mode ``L`` or ``RGB``, 8 bit, nothing transparent."""
    if image.mode == "F":
        raise UnreadableError("the range of its floating-point pixels is not known")
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise UnreadableError("the range of its 32-bit pixels is not known")
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (*form.background, 255))
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    if image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    return image if image.mode == form.mode else image.convert(form.mode)


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
    return str(error) or type(error).__name__


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """No half images, whatever the process has set; no warnings about what is read all the same.

    Both are global, so this is set once, before threads start, and put back after them.
    """
    Image.init()
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


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
) -> list[str]:
    """Decode into ``places``; gives the reason for each that cannot be decoded, else ``""``."""

    def decode_chunk(start: int) -> list[str]:
        reasons = []
        for row in range(start, min(start + CHUNK, len(window))):
            name, content, _ = window[row]
            try:
                image = decode(content, form)
            except UnreadableError as error:
                reasons.append(str(error))
                continue
            if image.shape != places.shape[1:]:
                raise ValueError(
                    f"the images differ in size: {places.shape[1:]} and, at {name}, "
                    f"{image.shape}; set ingest.source.image_size"
                )
            places[row] = image
            reasons.append("")
        return reasons

    parts = pool.map(decode_chunk, range(0, len(window), CHUNK))
    return [reason for part in parts for reason in part]
