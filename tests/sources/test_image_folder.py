"""A folder of one's own images: its layouts, and what is damaged in it."""

import io
import os
import shutil
import time
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from counterdoor.names import original
from counterdoor.params import IngestParams
from counterdoor.pipelines.ingest.nodes import ingest
from counterdoor.sources import ImageFolder

CLASSES = ("ant", "bee", "cow")


def read(folder, **settings):
    return ImageFolder(path=str(folder), **settings)()


# --- layouts -----------------------------------------------------------------------


def test_train_and_test(class_folders, noise):
    found = read(class_folders)
    assert found.class_names == CLASSES
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    for label in range(3):
        # 1.png lies deeper, so it comes after 0.png and 2.png
        expected = noise(3, 3, 6, 5, seed=30 + label)[[0, 2, 1]]
        np.testing.assert_array_equal(found.images_nchw[3 * label : 3 * label + 3], expected)
        expected = noise(2, 3, 6, 5, seed=20 + label)
        np.testing.assert_array_equal(found.test_images_nchw[2 * label : 2 * label + 2], expected)


def test_val_is_the_test_part_if_there_is_no_test(class_folders):
    expected = read(class_folders)
    shutil.copytree(class_folders / "test", class_folders / "val")
    (class_folders / "val" / "ant" / "0.png").unlink()
    assert len(read(class_folders).test_labels) == 6
    shutil.rmtree(class_folders / "test")
    found = read(class_folders)
    assert found.test_labels.tolist() == [0, 1, 1, 2, 2]
    np.testing.assert_array_equal(found.images_nchw, expected.images_nchw)


def test_without_parts_the_test_part_is_left_to_ingest(class_folders):
    expected = read(class_folders)
    found = read(class_folders / "train")
    np.testing.assert_array_equal(found.images_nchw, expected.images_nchw)
    assert found.test_images_nchw is None
    shutil.rmtree(class_folders / "test")
    assert read(class_folders).test_images_nchw is None
    params = IngestParams(
        source={"name": "image_folder", "path": str(class_folders)}, test_share=0.3, trusted_share=0
    )
    split = ingest(params, 0)
    assert (len(split["images"]), len(split["test_images"])) == (6, 3)


def test_hidden_files_and_folders_are_left_out(class_folders):
    expected = read(class_folders)
    (class_folders / "train" / ".cache").mkdir()
    (class_folders / "train" / "bee" / ".thumbs").mkdir()
    for place in ("train/.DS_Store", "train/bee/.DS_Store", "train/bee/.thumbs/0.png"):
        (class_folders / place).write_bytes(b"hidden")
    found = read(class_folders, on_corrupt="fail")
    np.testing.assert_array_equal(found.images_nchw, expected.images_nchw)
    assert found.class_names == CLASSES


def test_links_are_followed_but_not_in_circles(class_folders):
    expected = read(class_folders)
    shutil.move(class_folders / "train" / "bee", class_folders / "elsewhere")
    (class_folders / "train" / "bee").symlink_to(class_folders / "elsewhere")
    (class_folders / "elsewhere" / "deep" / "up").symlink_to(class_folders / "elsewhere")
    found = read(class_folders, on_corrupt="fail")
    np.testing.assert_array_equal(found.images_nchw, expected.images_nchw)


def test_folders_that_are_missing_or_empty(class_folders, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere cannot be read .* set ingest.source.path"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no folders in it"):
        read(tmp_path / "empty")
    (class_folders / "test" / "dog").mkdir()
    with pytest.raises(ValueError, match=r"has classes that .*train has not: dog"):
        read(class_folders)
    (class_folders / "train" / "dog").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*dog holds no file"):
        read(class_folders)
    shutil.rmtree(class_folders / "train")
    with pytest.raises(ValueError, match="has test/ but no train/"):
        read(class_folders)


def test_a_folder_that_cannot_be_listed(class_folders, monkeypatch):
    """Its images would be missing without a word."""
    scan = os.scandir

    def refuses(place):
        if str(place).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuses)
    with pytest.raises(ValueError, match=r"deep cannot be listed \(Permission denied\)"):
        read(class_folders)


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        ("Training", "Testing", ""),
        ("TRAIN", "TEST", ""),
        ("training_set", "test_set", ""),
        ("train", "valid", "read as the test part"),
        ("train", "Validation", "read as the test part"),
        ("train", "dev", "read as the test part"),
    ],
)
def test_parts_are_no_classes_however_they_are_spelt(class_folders, train, test, told):
    expected = read(class_folders)
    (class_folders / "train").rename(class_folders / "t")
    (class_folders / "test").rename(class_folders / test)
    (class_folders / "t").rename(class_folders / train)
    found = read(class_folders)
    assert found.class_names == CLASSES
    np.testing.assert_array_equal(found.images_nchw, expected.images_nchw)
    np.testing.assert_array_equal(found.test_images_nchw, expected.test_images_nchw)
    assert told in "".join(found.notes)
    assert len(found.notes) == bool(told)


def test_what_is_left_out_is_told(class_folders):
    assert read(class_folders).notes == ()
    shutil.copytree(class_folders / "test", class_folders / "valid")
    (class_folders / "annotations").mkdir()
    shutil.copy(class_folders / "train/ant/0.png", class_folders / "train/loose.png")
    (class_folders / "train/README.txt").write_text("hello")
    told = read(class_folders).notes
    assert len(told) == 3
    for words in ("valid is left out: ", "annotations is left out: ", "1 pictures lie in "):
        assert any(words in each for each in told)


def test_an_unlabelled_test_part_is_left_out(class_folders):
    shutil.rmtree(class_folders / "test")
    shutil.copytree(class_folders / "train/ant", class_folders / "test")
    shutil.rmtree(class_folders / "test/deep")
    found = read(class_folders)
    assert found.test_images_nchw is None
    assert "has no folder a class" in found.notes[0]


def test_two_training_parts_and_a_class_called_train_are_told(class_folders):
    (class_folders / "Training").mkdir()
    with pytest.raises(ValueError, match="both a train part"):
        read(class_folders)
    shutil.rmtree(class_folders / "Training")
    for name in CLASSES:
        (class_folders / "train" / name).rename(class_folders / name)
    shutil.rmtree(class_folders / "test")
    with pytest.raises(ValueError, match="if it is a class, put all class folders into"):
        read(class_folders)


@pytest.mark.parametrize(
    "junk", ["@eaDir", "__MACOSX", ".ipynb_checkpoints", ".git", "$RECYCLE.BIN", "lost+found"]
)
def test_folders_that_systems_leave_are_no_classes(class_folders, junk):
    expected = read(class_folders)
    for place in (".", "train", "test", "train/ant", "train/bee/deep"):
        shutil.copytree(class_folders / "train/cow", class_folders / place / junk)
    found = read(class_folders, on_corrupt="fail")
    assert found.class_names == CLASSES
    np.testing.assert_array_equal(found.images_nchw, expected.images_nchw)
    assert found.notes == ()


def test_accents_written_in_two_ways_are_one_class(class_folders):
    for part, form in (("train", "NFC"), ("test", "NFD")):
        name = unicodedata.normalize(form, "café")
        (class_folders / part / "bee").rename(class_folders / part / name)
    found = read(class_folders)
    assert found.class_names == ("ant", "caf\u00e9", "cow")
    assert found.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    again = unicodedata.normalize("NFD", "café")
    shutil.copytree(class_folders / "train/ant", class_folders / "train" / again)
    found = read(class_folders)
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2]
    assert "Unicode writes it in several ways" in found.notes[0]


def test_pictures_in_the_same_folders_of_every_class_are_told(class_folders):
    shutil.rmtree(class_folders / "test")
    for name in CLASSES:
        for kind in ("images", "masks"):
            place = class_folders / "train" / name / kind
            place.mkdir()
            shutil.copy(class_folders / "train" / name / "0.png", place / "0.png")
    assert "has pictures in deep, images, masks" in read(class_folders).notes[0]
    for kind in ("images", "masks"):
        shutil.rmtree(class_folders / "train/cow" / kind)
    assert read(class_folders).notes == ()


def test_a_folder_around_the_data_is_told(class_folders, tmp_path):
    shutil.copytree(class_folders / "train", tmp_path / "around" / "data")
    found = read(tmp_path / "around")
    assert found.class_names == ("data",)
    assert f"set ingest.source.path={tmp_path}/around/data" in found.notes[0]


def outside(class_folders, link, target):
    away = class_folders.parent / f"{class_folders.name} away"
    away.mkdir()
    shutil.copy(class_folders / "train/ant/0.png", away / "secret.png")
    (class_folders / link).symlink_to(away / target)


@pytest.mark.parametrize(("link", "target"), [("out.png", "secret.png"), ("deep/out", "")])
def test_links_that_lead_out_are_followed_if_asked(class_folders, link, target):
    outside(class_folders, f"train/ant/{link}", target)
    found = read(class_folders)
    ((file, reason),) = found.rejected
    assert file == f"train/ant/{link}"
    assert "leads out of the folder" in reason
    assert "follow_links=true" in found.notes[0]
    assert len(found.labels) == 9
    followed = read(class_folders, follow_links=True)
    assert (len(followed.labels), followed.rejected, followed.notes) == (10, (), ())
    with pytest.raises(ValueError, match="leads out of the folder"):
        read(class_folders, on_corrupt="fail")


@pytest.mark.parametrize("link", ["train/dog", "test", "train"])
def test_a_class_or_part_that_leads_out_is_an_error(class_folders, link):
    """It would be missing."""
    outside(class_folders, "away", "")
    if (class_folders / link).exists():
        shutil.rmtree(class_folders / link)
    (class_folders / "away").rename(class_folders / link)
    with pytest.raises(ValueError, match=r"leads out of .* set ingest\.source\.follow_links=true"):
        read(class_folders)


def test_links_in_circles_and_to_nothing(class_folders):
    (class_folders / "train/ant/loop").symlink_to(class_folders)
    (class_folders / "train/ant/self.png").symlink_to("self.png")
    (class_folders / "train/ant/none.png").symlink_to("nowhere.png")
    found = read(class_folders)
    reasons = dict(found.rejected)
    assert reasons["train/ant/none.png"] == "it is a link to nothing"
    assert "Too many levels" in reasons["train/ant/self.png"]


def test_names_that_are_not_utf_8_are_stored_so_that_they_are_found_again(class_folders):
    odd = os.fsdecode(b"caf\xe9\n")
    (class_folders / "train/bee").rename(class_folders / "train" / odd)
    (class_folders / "test/bee").rename(class_folders / "test" / odd)
    (class_folders / "train/ant/0.png").rename(class_folders / "train/ant" / f"{odd}.png")
    found = read(class_folders)
    assert found.class_names == ("ant", "caf\\xe9\n", "cow")
    assert r"train/ant/caf\xe9" in "".join(found.files)
    assert all((class_folders / original(file)).exists() for file in found.files)


# --- damage ------------------------------------------------------------------------

MODES = ("RGB", "L", "RGBA", "P", "CMYK", "1", "LA", "I;16")
FORMATS = {"jpg": ("JPEG", {"RGB", "L", "CMYK"}), "webp": ("WEBP", {"RGB", "RGBA"})}


def mixed(folder: Path, n: int, largest: int = 200) -> None:
    """Whole images of all formats, modes and sizes from 5 pixels, in three classes."""
    generator = np.random.default_rng(0)
    for number in range(n):
        height, width = generator.integers(5, largest, 2)
        coarse = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((int(width), int(height)))
        mode = MODES[number % len(MODES)]
        suffix = ("png", "jpg", "webp", "JPEG")[number // 3 % 4]
        form, modes = FORMATS.get(suffix.lower().replace("jpeg", "jpg"), ("PNG", None))
        if modes is not None and mode not in modes:
            mode = "RGB"
        if form == "PNG" and mode == "CMYK":
            form, suffix = "TIFF", "tif"
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        else:
            image = image.convert(mode)
        place = folder / CLASSES[number % 3] / ("more" if number % 5 == 0 else "")
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number:05}.{suffix}", form)


def damage(folder: Path) -> set[str]:
    """Adds 20 files that no image can be read from; gives their paths."""
    pixels = Image.fromarray(np.random.default_rng(1).integers(0, 256, (150, 170, 3), np.uint8))
    whole = {}
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        buffer = io.BytesIO()
        pixels.save(buffer, form)
        whole[form] = buffer.getvalue()
    huge = bytearray(whole["PNG"])
    huge[16:24] = (60_000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    damaged = {
        "empty.png": b"",
        "empty.jpg": b"",
        "cut.png": whole["PNG"][:20_000],
        "cut.jpg": whole["JPEG"][:5_000],
        "cut.webp": whole["WEBP"][:5_000],
        "cut.gif": whole["GIF"][:5_000],
        "cut.bmp": whole["BMP"][:50_000],
        "cut.tif": whole["TIFF"][:50_000],
        "header.png": whole["PNG"][:20],
        "header.jpg": whole["JPEG"][:20],
        "text.jpg": b"this is text",
        "page.png": b"<!doctype html><title>404</title>",
        "archive.webp": b"PK\x03\x04" + bytes(100),
        "readme.txt": b"this is text, too",
        "zeros.jpg": bytes(5_000),
        "bomb.png": bytes(huge),
        "flipped.png": whole["PNG"][:9_000] + bytes(5_000) + whole["PNG"][14_000:],
    }
    for number, (name, content) in enumerate(damaged.items()):
        (folder / CLASSES[number % 3] / name).write_bytes(content)
    (folder / "ant" / "link.png").symlink_to(folder / "nowhere.png")
    (folder / "bee" / "folder.jpg").mkdir()
    os.mkfifo(folder / "cow" / "pipe.png")
    names = [f"{CLASSES[number % 3]}/{name}" for number, name in enumerate(damaged)]
    return {*names, "ant/link.png", "bee/folder.jpg", "cow/pipe.png"}


def test_exactly_the_damaged_files_are_left_out_and_listed(tmp_path):
    mixed(tmp_path, 96)
    whole = read(tmp_path, image_size=24, on_corrupt="fail")
    assert whole.images_nchw.shape == (96, 3, 24, 24)
    assert whole.rejected == ()
    damaged = damage(tmp_path)
    assert len(damaged) == 20
    found = read(tmp_path, image_size=24)
    assert {file for file, _ in found.rejected} == damaged
    assert len(found.rejected) == 20
    np.testing.assert_array_equal(found.images_nchw, whole.images_nchw)
    np.testing.assert_array_equal(found.labels, whole.labels)
    reasons = dict(found.rejected)
    assert all(reasons.values())
    assert not [reason for reason in reasons.values() if str(tmp_path) in reason or "0x" in reason]
    assert reasons["ant/empty.png"] == "it is empty"
    assert "truncated" in reasons["ant/cut.jpg"]
    assert reasons["bee/text.jpg"] == "it is no image of a known format"
    assert "decompression bomb" in reasons["ant/bomb.png"]


def test_the_first_damaged_file_is_an_error_if_none_may_be(tmp_path):
    mixed(tmp_path, 24)
    damage(tmp_path)
    with pytest.raises(ValueError, match=r"ant/archive\.webp cannot be decoded") as raised:
        read(tmp_path, image_size=24, on_corrupt="fail")
    assert str(tmp_path) in str(raised.value)
    assert "set ingest.source.on_corrupt=skip" in str(raised.value)


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_class_of_which_nothing_is_left_is_an_error(class_folders, part):
    for file in (class_folders / part / "bee").rglob("*.png"):
        file.write_bytes(b"")
    name = "training" if part == "train" else "test"
    with pytest.raises(ValueError, match=f"all {name} images of class 'bee' are damaged") as raised:
        read(class_folders)
    assert f"the first is {part}/bee/0.png: it is empty" in str(raised.value)


def test_rejected_files_of_both_parts_reach_the_artifact(class_folders):
    (class_folders / "train" / "ant" / "x.png").write_bytes(b"")
    (class_folders / "test" / "cow" / "y.png").write_bytes(b"text")
    params = IngestParams(
        source={"name": "image_folder", "path": str(class_folders)}, test_share=0.3, trusted_share=0
    )
    result = ingest(params, 0)
    assert result["rejected"].to_dict("records") == [
        {"file": "train/ant/x.png", "reason": "it is empty"},
        {"file": "test/cow/y.png", "reason": "it is no image of a known format"},
    ]
    assert result["info"]["n_rejected"] == 2
    assert result["info"]["n_train"] == 9


@pytest.mark.slow
def test_20_damaged_files_among_5000(tmp_path):
    mixed(tmp_path, 5000, largest=64)
    damaged = damage(tmp_path)
    started = time.perf_counter()
    found = read(tmp_path, image_size=32)
    print(f"read {len(found.labels):,} images in {time.perf_counter() - started:.1f} s")
    for file, reason in found.rejected:
        print(f"  {file}: {reason}")
    assert len(found.labels) == 5000
    assert sorted(file for file, _ in found.rejected) == sorted(damaged)


# --- the size that nobody said -------------------------------------------------------


def picture(file, width, height, orientation=None):
    image = Image.new("RGB", (width, height), (9, 8, 7))
    file.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(file, exif=exif)


@pytest.mark.parametrize(
    ("sizes", "expected", "told"),
    [
        ([(28, 28), (28, 28)], (28, 28), None),
        ([(30, 20), (30, 20)], (20, 30), None),
        ([(128, 40), (128, 40)], (40, 128), None),
        ([(129, 40), (129, 40)], (64, 64), "are larger than 128 pixels"),
        ([(28, 28), (28, 29)], (64, 64), "differ in size"),
    ],
)
def test_pictures_of_one_size_stay_as_they_are(tmp_path, sizes, expected, told):
    for name, size in zip(("ant", "bee"), sizes, strict=True):
        picture(tmp_path / name / "0.png", *size)
        (tmp_path / name / "damaged.png").write_bytes(b"x")
    found = read(tmp_path, image_size="auto")
    assert found.images_nchw.shape[2:] == expected
    notes = [note for note in found.notes if "brought to" in note]
    assert notes == (
        []
        if told is None
        else [
            f"the pictures {told}, so all are brought to 64x64 pixels: "
            "ingest.source.image_size sets another size"
        ]
    )


def test_a_picture_is_as_large_as_it_is_shown(tmp_path):
    picture(tmp_path / "ant" / "0.jpg", 20, 30, orientation=6)
    picture(tmp_path / "bee" / "0.jpg", 30, 20)
    assert read(tmp_path, image_size="auto").images_nchw.shape[2:] == (20, 30)


def test_trusted_pictures_are_brought_to_the_size_of_the_others(tmp_path):
    for label, name in enumerate(("ant", "bee")):
        for number in range(4):
            picture(tmp_path / "all" / name / f"{number}.png", 20 + label, 20 + number)
        picture(tmp_path / "known" / name / "0.png", 16, 16)
    source = {"name": "image_folder", "path": str(tmp_path / "all"), "image_size": "auto"}
    params = IngestParams(
        source=source, test_share=0.25, trusted_share=0, trusted_path=str(tmp_path / "known")
    )
    assert ingest(params, 0)["images"].shape == (8, 3, 64, 64)
