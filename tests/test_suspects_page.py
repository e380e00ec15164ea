"""The page of suspects: one file, all of it from the arguments, names that cannot break it."""

import io
import json
import re
from base64 import b64decode

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from counterdoor import suspects_page
from counterdoor.ledger import new_ledger
from counterdoor.suspects_page import render_suspects

NAMES = ["ant", "bee"]


def case(images, suspected, file="{}.png"):
    labels = np.arange(len(images)) % 2
    flags = np.isin(np.arange(len(images)), suspected)
    ledger = new_ledger(labels, np.zeros(len(images), bool)).assign(
        score=np.linspace(0, 1, len(images)), suspect=flags
    )
    suspects = pd.DataFrame(
        {
            "file": [file.format(row) for row in suspected],
            "sample_id": suspected,
            "label": [NAMES[row % 2] for row in suspected],
            "score": ledger["score"].to_numpy()[suspected],
            "rank": range(1, len(suspected) + 1),
            "pseudo_label": "ant",
            "reason": "because",
        }
    )
    return ledger, suspects


def data_of(page):
    return json.loads(re.search(r"const data = (\{.*\});", page)[1])


def sheet_of(page):
    data = re.search(r"data:image/webp;base64,([^\"]+)\"", page)[1]
    return np.asarray(Image.open(io.BytesIO(b64decode(data))))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_page_has_all_suspects_and_their_images_exactly(noise, channels):
    images = noise(40, channels, 8, 10)
    rows = [38, 3, 21, 30, 5, 7, 9]
    page = render_suspects(images, *case(images, rows), NAMES)
    data = data_of(page)
    assert data["file"] == [f"{row}.png" for row in rows]
    assert data["rank"] == [1, 2, 3, 4, 5, 6, 7]
    assert data["label"] == [NAMES[row % 2] for row in rows]
    sheet = sheet_of(page)
    assert sheet.shape[:2] == (3 * 8, 3 * 10)
    for number, row in enumerate(rows):
        top, left = number // 3 * 8, number % 3 * 10
        found = sheet[top : top + 8, left : left + 10, :channels]  # WebP has no grey
        for channel in range(channels):
            np.testing.assert_array_equal(found[..., channel], images[row, channel])
    assert "7 suspects among 40 images" in page


def test_nothing_is_fetched_from_elsewhere(noise):
    images = noise(20)
    page = render_suspects(images, *case(images, [1, 3, 5, 7]), NAMES)
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "http" not in page.replace("http-equiv", "")


def test_a_file_name_cannot_end_the_script(noise):
    images = noise(20)
    told = case(images, [1, 3], file="</script><b>{}.png")
    page = render_suspects(images, *told, NAMES)
    assert data_of(page)["file"] == ["</script><b>1.png", "</script><b>3.png"]
    assert page.count("</script>") == 1


def test_a_class_name_is_text(noise):
    images = noise(20)
    page = render_suspects(images, *case(images, [1, 3]), ["<i>ant</i>", "bee"])
    assert "<i>ant</i>" not in page


def test_the_difference_of_averages_shows_a_trigger(noise):
    images = np.array(noise(60))
    rows = list(range(1, 40, 4))
    images[rows, :, -3:, -3:] = 255
    page = render_suspects(images, *case(images, rows), NAMES)
    (picture,) = re.findall(r'base64,([^"]+)" alt="average of difference"', page)
    levels = np.asarray(Image.open(io.BytesIO(b64decode(picture)))).astype(int)
    trigger = np.zeros(levels.shape, bool)
    trigger[-3:, -3:] = True
    assert levels[trigger].min() > levels[~trigger].max()


def test_a_class_with_few_suspects_has_no_average(noise):
    images = noise(20)
    page = render_suspects(images, *case(images, [1, 3]), NAMES)
    assert "average of" not in page
    assert page.count("average of") == 0


def test_only_the_most_suspicious_are_shown_where_there_are_many(noise, monkeypatch):
    monkeypatch.setattr(suspects_page, "SHOWN", 3)
    images = noise(20)
    page = render_suspects(images, *case(images, [9, 1, 3, 5]), NAMES)
    assert data_of(page)["file"] == ["9.png", "1.png", "3.png"]
    assert "the 3 most suspicious" in page


def test_nobody_suspected_is_said(noise):
    images = noise(20)
    page = render_suspects(images, *case(images, []), NAMES)
    assert "Nobody stands out" in page
    assert "<script>" not in page


def test_large_images_are_shrunk(noise):
    images = noise(20, 3, 200, 100)
    page = render_suspects(images, *case(images, [1, 3, 5, 7]), NAMES)
    assert sheet_of(page).shape[:2] == (128, 64)


def test_a_picture_under_two_labels_is_shown_with_its_files(noise):
    images = noise(20)
    files = [f"<i>{row}.png" for row in range(20)]
    told = case(images, [1, 3])
    page = render_suspects(images, *told, NAMES, files, [(2, 3), (4, 5, 6)])
    assert page.count('alt="picture under several labels"') == 2
    for row in (2, 3, 4, 5, 6):
        assert f"&lt;i&gt;{row}.png" in page
    assert page.count("(suspect)") == 1
    assert "several labels" not in render_suspects(images, *told, NAMES, files)


def test_only_so_many_pictures_under_two_labels_are_shown(noise, monkeypatch):
    monkeypatch.setattr(suspects_page, "CONFLICTS", 1)
    images = noise(20)
    files = [str(row) for row in range(20)]
    page = render_suspects(images, *case(images, []), NAMES, files, [(0, 1), (2, 3)])
    assert page.count('alt="picture under several labels"') == 1
    assert "the first 1 of 2" in page


def test_what_the_page_saves_is_no_formula(noise):
    images = noise(20)
    ledger, suspects = case(images, [1, 3], file="=cmd{}.png")
    page = render_suspects(images, ledger, suspects.assign(label=["@x", "'@x"]), NAMES)
    data = data_of(page)
    assert data["file"] == ["./=cmd1.png", "./=cmd3.png"]
    assert data["label"] == ["'@x", "'@x"]
