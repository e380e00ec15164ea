"""What attacks do to pixels: mixing in a pattern, reading one from a file, working in chunks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

CHUNK = 1024
"""Images that are turned to float at a time."""
MODES = {1: "L", 3: "RGB"}


def by_chunks(
    change: Callable[..., np.ndarray], images_nchw: np.ndarray, *per_image: np.ndarray
) -> np.ndarray:
    """Apply ``change`` to a few images at a time, so that floats never fill the memory.

    Args:
        change: from uint8 images (n, C, H, W) and the slices of ``per_image`` to levels
            of the same shape; these are rounded and clipped to [0, 255].
        images_nchw: uint8, shape (N, C, H, W).
        per_image: arrays of length N.

    Returns:
        A new array, uint8, shape (N, C, H, W).
    """
    changed = np.empty(images_nchw.shape, dtype=np.uint8)
    for start in range(0, len(images_nchw), CHUNK):
        rows = slice(start, start + CHUNK)
        levels = change(images_nchw[rows], *(each[rows] for each in per_image))
        changed[rows] = np.clip(np.rint(levels), 0, 255)
    return changed


def mix(images_nchw: np.ndarray, pattern: np.ndarray, weight: float | np.ndarray) -> np.ndarray:
    """(1 - weight) * image + weight * pattern, float64; all broadcast to (N, C, H, W)."""
    mixed: np.ndarray = (1.0 - weight) * images_nchw + weight * pattern.astype(np.float64)
    return mixed


def read_pattern(
    path: str, channels: int, size: tuple[int, int] | None = None, *, parameter: str
) -> np.ndarray:
    """An image file as a pattern.

    Args:
        path: the file, in any format that Pillow reads.
        channels: 1 (turned to grey) or 3 (turned to RGB; transparency is ignored).
        size: height and width that it is brought to; its own if left out.
        parameter: the path's name in the configuration, for errors.

    Returns:
        uint8, shape (channels, height, width), in [0, 255].

    Raises:
        ValueError: if there is no such file, it is no image, or the channels are
            neither 1 nor 3.
    """
    from PIL import Image, UnidentifiedImageError

    if channels not in MODES:
        raise ValueError(f"{parameter} is for images with 1 or 3 channels; these have {channels}")
    if not Path(path).is_file():
        raise ValueError(
            f"{parameter} is {path!r}, but there is no such file; give the path of an image"
        )
    try:
        with Image.open(path) as image:
            converted = image.convert(MODES[channels])
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{parameter} is {path!r}, which is no image: {error}") from error
    if size is not None:
        converted = converted.resize(size[::-1], Image.Resampling.BILINEAR)
    pixels = np.array(converted, dtype=np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
