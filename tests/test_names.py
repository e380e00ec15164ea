"""Names are data: stored so that they can be found again, shown so that nothing obeys them."""

import csv
import io
import os
import re
import unicodedata

import pytest

from counterdoor import names

ODD = [
    "plain.png",
    os.fsdecode(b"\xff\xfe.png"),
    os.fsdecode(b"half \xc3.png"),
    "back\\slash.png",
    "\\xff.png",
    "\\\\xff.png",
    "\\x",
    "\\u0041",
    "a\\",
    os.fsdecode(b"\\x\xff\\"),
    "\x1b[31mred\x07",
    "new\nline\rback\ttab",
    "\x9b31m",
    "\x00nul",
    "\ud800lone",
    "日本語 café 🙂",
    "[bold]x[/bold]",
    "=cmd|'/c calc'!A1",
    "$x^2$",
    "‮gnp.exe",
]


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_what_is_stored_is_text_that_gives_the_name_again(name):
    stored = names.plain(name)
    stored.encode("utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", stored)
    assert names.original(stored) == name
    assert "\n" not in name or "\n" in stored


def test_usual_names_are_stored_as_they_are():
    for name in (
        "a/b c.png",
        "日本語 café.png",
        "back\\slash.png",
        "=cmd().png",
        "<b>",
        "new\nline",
    ):
        assert names.plain(name) == name
    assert names.plain(os.fsdecode(b"\xff.png")) == r"\xff.png"


def test_no_two_names_are_stored_alike():
    assert len({names.plain(name) for name in ODD}) == len(ODD)
    assert names.plain(os.fsdecode(b"\x80")) != names.plain("\x80")


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_what_is_shown_is_one_line_that_nothing_obeys(name):
    text = names.shown(name)
    text.encode("utf-8")
    kinds = {unicodedata.category(each) for each in text}
    assert not kinds & {"Cc", "Cs", "Zl", "Zp"}
    assert "\u202e" not in text


def test_a_class_is_the_same_however_its_accents_are_written():
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert composed != apart
    assert names.class_name(composed) == names.class_name(apart) == composed


@pytest.mark.parametrize(
    "start", ["=", "+", "-", "@", "\t", "\n", " =", "＝", "＋", "－", "＠"], ids=ascii
)
def test_no_cell_starts_a_formula_and_all_can_be_found_again(start):
    name = f"{start}cmd|' /c calc'!A1"
    path, text = names.csv_path(name), names.csv_text(name)
    assert path == f"./{name}"
    assert os.path.normpath(path) == name
    assert text == f"'{name}"
    assert names.from_csv(text) == name


def test_apostrophes_numbers_and_usual_text_can_be_found_again():
    for text in (
        "'",
        "'=1+1",
        "''=x",
        "'quoted'",
        "-1",
        "+3.5",
        "-1e5",
        "cat",
        "",
        "a=b",
        "-",
        "-x",
    ):
        assert names.from_csv(names.csv_text(text)) == text
    for text in ("'quoted'", "-1", "+3.5", "-1e5", "cat", "", "a=b"):
        assert names.csv_text(text) == text
    assert names.csv_text("-1+1") == "'-1+1"


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_a_table_of_stored_names_is_read_as_it_was_written(name):
    """Python up to 3.12 does not quote a carriage return."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow([names.csv_path(names.plain(name)), "x"])
    ((read, _),) = csv.reader(io.StringIO(buffer.getvalue(), newline=""))
    assert os.path.normpath(names.original(read)) == name


def test_markdown_and_html_show_names_as_they_are():
    assert names.markdown("a|b") == r"a\|b"
    assert names.markdown("<img src=x>") == "&lt;img src=x&gt;"
    assert names.markdown("[x](http://y)") == r"\[x\](http&#58;//y)"
    assert names.markdown("two\nlines") == r"two\\x0alines"
    assert names.markdown("digits_cnn") == "digits_cnn"
    assert names.markdown("_x_ *y* `z`") == r"\_x\_ \*y\* \`z\`"
