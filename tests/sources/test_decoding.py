"""Decoding against arithmetic written out here: sizes, modes, orientations, and damage."""

import io
import logging
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin

from counterdoor.sources import decoding
from counterdoor.sources.decoding import Form, UnreadableError, conform, decode, read_images


def encoded(pixels, form="PNG", mode=None, **options):
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, form, **options)
    return buffer.getvalue()


def colour(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height, width):
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / width * 9 + c) * np.cos(y / height * 7 - c) for c in range(3)]
    return (np.stack(waves, 2) * 100 + 128).astype(np.uint8)


def png(width, height, data=b""):
    """A PNG that says it is so large, whatever it holds."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


# --- sizes -----------------------------------------------------------------------


def resampled(row, start, length, size):
    """Antialiased bicubic (a = -0.5) of one line's part [start, start + length), unrounded."""
    scale = max(length / size, 1.0)
    result = []
    for out in range(size):
        centre = start + (out + 0.5) * length / size
        x = np.abs((np.arange(len(row)) + 0.5 - centre) / scale)
        weight = np.where(
            x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        ) * (x < 2)
        result.append((row * weight).sum() / weight.sum())
    return np.array(result)


@pytest.mark.parametrize("size", [(7, 7), (12, 6), (40, 33)], ids=str)
@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize(("height", "width"), [(30, 21), (16, 35)])
def test_sizes_are_changed_by_antialiased_bicubic_resampling(size, resize, height, width):
    pixels = colour(height, width)
    found = decode(encoded(pixels), Form(size, resize=resize)).astype(float)
    rows, columns = size
    top = left = 0.0
    if resize == "crop":
        scale = min(height / rows, width / columns)
        top, left = (height - scale * rows) / 2, (width - scale * columns) / 2
    for channel in range(3):
        plane = pixels[:, :, channel].astype(float)
        across = [resampled(line, left, width - 2 * left, columns) for line in plane]
        across = np.clip(np.round(across), 0, 255)
        down = [resampled(line, top, height - 2 * top, rows) for line in across.T]
        assert np.abs(np.clip(down, 0, 255).T - found[channel]).max() < 1.5


def test_the_size_there_is_is_left_alone():
    pixels = colour(9, 6)
    for form in (Form(), Form((9, 6)), Form((9, 6), resize="squash")):
        np.testing.assert_array_equal(decode(encoded(pixels), form), pixels.transpose(2, 0, 1))


def test_a_much_larger_jpeg_is_decoded_small_and_looks_the_same(monkeypatch):
    sizes = []
    load = JpegImagePlugin.JpegImageFile.load

    def spy(self):
        sizes.append(self.size)
        return load(self)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", spy)
    pixels = smooth(801, 1003)
    found = decode(encoded(pixels, "JPEG", quality=95), Form((24, 30)))
    assert min(sizes) == (126, 101), "an eighth, rounded up"
    exact = decode(encoded(pixels), Form((24, 30)))
    assert np.abs(found.astype(int) - exact).mean() < 1
    assert np.abs(found.astype(int) - exact).max() < 6


# --- modes -----------------------------------------------------------------------


def test_grey_is_the_luma_of_colour_and_colour_of_grey_is_grey():
    pixels = colour(8, 8)
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode(encoded(pixels), Form(mode="L"))[0] - luma).max() < 1
    grey = pixels[:, :, 0]
    np.testing.assert_array_equal(decode(encoded(grey), Form()), np.stack([grey] * 3))
    np.testing.assert_array_equal(decode(encoded(grey), Form(mode="L")), grey[None])


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_show_the_background(form):
    pixels = np.concatenate([colour(8, 8), colour(8, 8, seed=1)[:, :, :1]], axis=2)
    data = encoded(pixels, form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    background = np.array([10, 200, 90])
    found = decode(data, Form(background=(10, 200, 90))).transpose(1, 2, 0)
    share = pixels[:, :, 3:] / 255
    expected = pixels[:, :, :3] * share + background * (1 - share)
    assert np.abs(found - expected).max() <= 1


def test_a_transparent_palette_and_a_transparent_colour_show_the_background():
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    for transparency in (1, b"\xff\x00\xff"):
        data = encoded(image, transparency=transparency)
        found = decode(data, Form(background=(1, 2, 3)))[:, 0].T.tolist()
        assert found == [[255, 0, 0], [1, 2, 3], [0, 0, 255]]
    key = encoded(np.array([[[9, 9, 9], [7, 8, 9]]], np.uint8), transparency=(7, 8, 9))
    assert decode(key, Form(background=(1, 2, 3)))[:, 0].T.tolist() == [[9, 9, 9], [1, 2, 3]]
    grey = Image.merge("LA", [Image.new("L", (1, 1), 100), Image.new("L", (1, 1), 0)])
    assert decode(encoded(grey), Form(mode="L")).tolist() == [[[255]]]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bit_levels_are_scaled(form):
    levels = np.array([[0, 128, 129, 257, 30000, 65406, 65535]], np.uint16)
    found = decode(encoded(levels, form), Form(mode="L"))[0, 0]
    assert found.tolist() == [0, 0, 1, 1, 117, 254, 255]


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk(form):
    inks = np.tile(np.array([[[0, 255, 255, 0]], [[255, 0, 0, 127]]], np.uint8), (1, 16, 1))
    inks = inks.repeat(8, axis=0)
    data = encoded(Image.fromarray(inks, "CMYK"), form)
    found = decode(data, Form()).astype(int)
    assert np.abs(found[:, 2, 4] - [255, 0, 0]).max() < 12
    assert np.abs(found[:, 13, 4] - [0, 128, 128]).max() < 12


def test_bits_palettes_and_animations():
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    assert decode(encoded(bits), Form(mode="L"))[0].tolist() == [[0, 255], [255, 0]]
    pixels = np.array([[[250, 0, 0], [0, 250, 0]]], np.uint8)
    np.testing.assert_array_equal(
        decode(encoded(pixels, mode="P"), Form()),
        np.asarray(Image.fromarray(pixels).convert("P").convert("RGB")).transpose(2, 0, 1),
    )
    frames = [Image.new("L", (4, 4), level) for level in (255, 0)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, Form(mode="L")).min() == 255


UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG", "TIFF"])
def test_the_exif_orientation_is_applied(orientation, form):
    stored = smooth(40, 26)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(form, {})
    plain = decode(encoded(stored, form, **options), Form()).transpose(1, 2, 0)
    data = encoded(stored, form, exif=exif, **options)
    upright = np.ascontiguousarray(UPRIGHT[orientation](plain))
    np.testing.assert_array_equal(decode(data, Form()).transpose(1, 2, 0), upright)
    resized = Form((12, 9))
    difference = decode(data, resized).astype(int) - decode(encoded(upright), resized)
    assert np.abs(difference).max() <= 1


# --- damage ----------------------------------------------------------------------


def reason(content):
    read = read_images([("a", content, 0)], 1, Form((8, 8)), on_corrupt="skip")
    (rejected,) = read.rejected
    return rejected.reason


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_a_truncated_image_is_never_read(form):
    """A short cut and a long one, of an image so large that a JPEG is decoded small."""
    data = encoded(colour(200, 200), form)
    for share in (0.5, 0.9):
        cut = data[: int(share * len(data))]
        with pytest.raises(UnreadableError):
            decode(cut, Form((8, 8)))


def test_truncated_images_are_not_read_in_a_process_that_allows_them(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    cut = encoded(colour(200, 200), "JPEG")[:9000]
    decode(cut, Form())  # this is what has to be prevented
    with pytest.raises(ValueError, match=r"the image /data/a\.jpg cannot be decoded: .*truncated"):
        read_images([("a.jpg", cut, 0)], 1, Form(), root="/data")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_a_bomb_is_refused_by_its_header():
    """Both have no pixels to decode, so a decoder would have called them truncated."""
    assert reason(png(10_000, 9_000)) == "10000x9000 are more than 89478485 pixels"
    assert "decompression bomb" in reason(png(60_000, 60_000))
    assert "truncated" in reason(png(100, 100))


def test_reasons_are_readable_and_hold_no_address(tmp_path):
    assert reason(b"") == "it is empty"
    (tmp_path / "empty.png").touch()
    assert reason(tmp_path / "empty.png") == "it is empty"
    assert reason(b"only text") == "it is no image of a known format"
    (tmp_path / "text.jpg").write_text("only text")
    assert reason(tmp_path / "text.jpg") == "it is no image of a known format"
    assert reason(tmp_path / "nowhere.png") == "No such file or directory"
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    assert reason(tmp_path / "broken.png") == "it is a link to nothing"
    (tmp_path / "folder.jpg").mkdir()
    assert reason(tmp_path / "folder.jpg") == "it is not a file"
    os.mkfifo(tmp_path / "pipe.png")
    assert reason(tmp_path / "pipe.png") == "it is not a file"


def test_a_file_without_permission_is_unreadable(tmp_path, monkeypatch):
    """Root may read everything, so there the system's refusal is put in its place."""
    file = tmp_path / "secret.png"
    file.write_bytes(encoded(colour(4, 4)))
    if os.geteuid():
        file.chmod(0)
    else:

        def refuses(*args, **kwargs):
            raise PermissionError(13, "Permission denied", str(file))

        monkeypatch.setattr(Image, "open", refuses)
    assert reason(file) == "Permission denied"


def test_pixels_of_unknown_range_are_refused():
    assert "floating-point" in reason(encoded(np.ones((4, 4), np.float32), "TIFF"))
    assert "32-bit" in reason(encoded(np.full((4, 4), 10**6, np.int32), "TIFF"))


def test_no_interpreter_is_run_for_an_eps_file():
    """Pillow would hand it to Ghostscript."""
    assert reason(encoded(colour(8, 8), "EPS")) == "it is no image of a known format"


def test_running_out_of_memory_is_no_damage(monkeypatch):
    def fails(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(MemoryError):
        decode(encoded(colour(4, 4)), Form())


# --- many ------------------------------------------------------------------------


def many(n, damaged=()):
    pixels = np.random.default_rng(3).integers(0, 256, (n, 2, 3, 3), dtype=np.uint8)
    for row in range(n):
        yield f"{row}.png", b"no image" if row in damaged else encoded(pixels[row]), row % 7


def expected(n, damaged=()):
    pixels = np.random.default_rng(3).integers(0, 256, (n, 2, 3, 3), dtype=np.uint8)
    rows = np.setdiff1d(np.arange(n), list(damaged))
    return pixels[rows].transpose(0, 3, 1, 2), rows % 7


@pytest.mark.parametrize(
    "damaged", [(), (0,), (299,), (0, 1, 7, 8, 254, 255, 256, 257, 299), tuple(range(260))], ids=len
)
@pytest.mark.parametrize("size", [None, (2, 3)])
def test_images_keep_their_order_and_labels_when_some_are_left_out(damaged, size, caplog):
    n = decoding.WINDOW + 44
    read = read_images(many(n, damaged), n, Form(size), on_corrupt="skip")
    images, labels = expected(n, damaged)
    np.testing.assert_array_equal(read.images_nchw, images)
    np.testing.assert_array_equal(read.labels, labels)
    assert read.labels.dtype == np.int64
    assert [file for file, _ in read.rejected] == [f"{row}.png" for row in damaged]
    assert {reason for _, reason in read.rejected} <= {"it is no image of a known format"}
    assert read.rejected_labels == [row % 7 for row in damaged]
    told = f"{len(damaged)} of {n} files" in caplog.text
    assert told == bool(damaged)


def test_the_first_damaged_image_in_order_is_the_error():
    n = 300
    with pytest.raises(ValueError, match="cannot be decoded") as raised:
        read_images(many(n, (290, 40, 3)), n, Form(), root="/some/where")
    assert str(raised.value).startswith("the image /some/where/3.png cannot be decoded: it is no")
    assert str(raised.value).endswith("or set ingest.source.on_corrupt=skip")


def test_sizes_that_differ_are_an_error_even_where_damage_is_skipped():
    items = [("a.png", encoded(colour(3, 4)), 0), ("b.png", encoded(colour(4, 4)), 0)]
    with pytest.raises(ValueError, match=r"\(3, 3, 4\) and, at b\.png, \(3, 4, 4\)") as raised:
        read_images(items, 2, Form(), on_corrupt="skip")
    assert "set ingest.source.image_size" in str(raised.value)


def test_items_are_taken_as_they_are_needed():
    """Otherwise all encoded images of a Parquet file would lie in memory at once."""
    n, taken = 3 * decoding.WINDOW, []
    shapes = []

    def items():
        for item in many(n):
            taken.append(item[0])
            yield item

    read = decoding._decode_window

    def spy(pool, window, form, places):
        shapes.append(len(taken))
        return read(pool, window, form, places)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "_decode_window", spy)
        read_images(items(), n, Form())
    assert shapes == [decoding.WINDOW, 2 * decoding.WINDOW, 3 * decoding.WINDOW]


def test_progress_is_told_in_records(caplog):
    with caplog.at_level(logging.DEBUG, logger=decoding.progress.name):
        read_images(many(300), 300, Form())
    last = caplog.records[-1].progress
    assert last["done"] == last["total"] == 300
    assert last["rate"] > 0
    assert last["stream"] == "reading"


def test_pixels_that_have_the_form_are_not_copied(noise):
    images = noise(4, 3, 6, 5)
    assert conform(images, Form()) is images
    assert conform(images, Form((6, 5))) is images


def test_pixels_are_brought_to_a_form_as_files_are(noise):
    for channels in (1, 3):
        images = noise(300, channels, 6, 5)
        form = Form((4, 4), mode="L" if channels == 3 else "RGB")
        found = conform(images, form)
        for row in (0, 17, 299):
            pixels = images[row, 0] if channels == 1 else images[row].transpose(1, 2, 0)
            data = encoded(np.ascontiguousarray(pixels))
            np.testing.assert_array_equal(found[row], decode(data, form))


def test_a_path_is_read_as_its_bytes_are(tmp_path):
    file = tmp_path / "a.webp"
    file.write_bytes(encoded(colour(20, 30), "WEBP"))
    np.testing.assert_array_equal(
        decode(file, Form((8, 8))), decode(Path(file).read_bytes(), Form((8, 8)))
    )


# --- what is told ------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "told"), [(8, "8 bits"), (12, "12 bits"), (13, ""), (16, "")])
def test_levels_of_few_bits_in_files_of_16(bits, told):
    """A 12-bit scan would otherwise be nearly black, without a word."""
    levels = np.linspace(0, 2**bits - 1, 64).astype(np.uint16).reshape(8, 8)
    content = encoded(levels)
    most = 2**bits - 1 if told else 65535
    np.testing.assert_allclose(decode(content, Form(mode="L"))[0], levels / most * 255, atol=0.51)
    found = read_images([("a", content, 0)], 1, Form(mode="L"))
    assert told in "".join(found.notes)
    assert len(found.notes) == bool(told)


def test_black_in_16_bits_stays_black_without_a_word():
    content = encoded(np.zeros((4, 4), np.uint16))
    found = read_images([("a", content, 0)], 1, Form(mode="L"))
    assert (found.images_nchw.max(), found.notes) == (0, [])


def test_colours_of_12_bits_in_16_are_told():
    """Of these Pillow reads the upper eight bits alone."""

    def deep(level):
        rows = b"".join(b"\0" + struct.pack(">H", level) * 12 for _ in range(4))
        whole = png(4, 4, rows)
        header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
        check = struct.pack(">I", zlib.crc32(b"IHDR" + header))
        return whole[:16] + header + check + whole[33:]

    found = read_images([("a", deep(4000), 0), ("b", deep(40_000), 0)], 2, Form())
    assert found.images_nchw[:, 0, 0, 0].tolist() == [4000 >> 8, 40_000 >> 8]
    (note,) = found.notes
    assert "1 of 2 pictures" in note
    assert "nearly black" in note


def test_a_png_with_much_text_is_read():
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 2_000_000, zip=True)
    pixels = colour(4, 4)
    content = encoded(pixels, pnginfo=text)
    found = read_images([("a", content, 0)], 1, Form())
    np.testing.assert_array_equal(found.images_nchw[0], pixels.transpose(2, 0, 1))
    text.add_text("comment", "x" * 17_000_000, zip=True)
    left = read_images([("a", encoded(pixels, pnginfo=text), 0)], 1, Form(), on_corrupt="skip")
    assert "too large" in left.rejected[0].reason


def test_more_images_than_memory_are_refused_before_they_are_read():
    with pytest.raises(ValueError, match=r"take .* GB, but this machine has .*image_size"):
        read_images([("a", encoded(colour(4, 4)), 0)], 10**9, Form((1000, 1000)))


def test_pictures_of_many_pixels_are_decoded_one_at_a_time(monkeypatch):
    """Several copies of each are in memory."""
    monkeypatch.setattr(decoding, "LARGE", 15)
    monkeypatch.setattr(decoding.os, "cpu_count", lambda: 8)
    flatten, running, most = decoding._flatten, [], []

    def slow(image, form):
        running.append(1)
        most.append(len(running))
        time.sleep(0.002)
        running.pop()
        return flatten(image, form)

    monkeypatch.setattr(decoding, "_flatten", slow)
    items = [(str(row), encoded(colour(4, 4)), 0) for row in range(64)]
    read_images(items, 64, Form())
    assert max(most) == 1


def test_names_are_shown_on_one_line(caplog):
    read_images([("a\n\x1b[31m", b"", 0)], 1, Form(), on_corrupt="skip")
    assert r"a\x0a\x1b[31m" in caplog.text
    with pytest.raises(ValueError, match=r"a\\x0a\\x1b"):
        read_images([("a\n\x1b[31m", b"", 0)], 1, Form())
