r"""Names of files and classes are data: one form to store them in, and one a place to show them.

A name may hold any byte but NUL and "/", since that is what a file system takes. The stored
form, :func:`plain`, is text that every format can hold: bytes that are not UTF-8 and control
characters, but for tab and newline, are written ``\x1b``, other lone surrogates ``\ud800``; in
such a name, or one that holds ``\x`` or ``\u`` of its own, backslashes are doubled, so that
:func:`original` finds the name again. All other names stay as they are.

Everything that is shown goes through one of the others: :func:`shown` on a terminal, in a log, a
figure or a sentence, :func:`markdown` in a document, :func:`csv_path` and :func:`csv_text` in a
table that a spreadsheet may open.
"""

import re
import unicodedata

_UNSTORABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_ESCAPED = re.compile(r"\\\\|\\x([0-9a-f]{2})|\\u([0-9a-f]{4})")
_LOOKS_ESCAPED = re.compile(r"\\[xu]")
_TURNING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""What changes the direction of text, and so can make a name look like another one."""

_FORMULA = re.compile(r"(?s)[\t\r\n]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20].")
"""After OWASP, "CSV Injection", with the wide forms that some spreadsheets read as well."""
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
_MARKED_UP = re.compile(r"[\\`*\[\]|$#~]|(?<![^\W_])_|_(?![^\W_])")


def plain(name: str) -> str:
    r"""The form in which a name is stored: text without lone surrogates and control characters.

    Args:
        name: as :func:`os.fsdecode` gives it.
    """
    if not (_UNSTORABLE.search(name) or _LOOKS_ESCAPED.search(name)):
        return name
    return _UNSTORABLE.sub(_escape, name.replace("\\", "\\\\"))


def original(stored: str) -> str:
    """The name that :func:`plain` was made from; :func:`os.fsencode` gives its bytes."""
    if not _LOOKS_ESCAPED.search(stored):
        return stored
    return _ESCAPED.sub(_unescape, stored)


def class_name(name: str) -> str:
    """The stored form of a class's name: composed (NFC), since systems write é in two ways."""
    return unicodedata.normalize("NFC", plain(name))


def shown(name: object) -> str:
    """On one line and without anything that a terminal, or the direction of text, obeys."""
    return "".join(
        f"\\x{ord(each):02x}"
        if unicodedata.category(each) == "Cc"
        else f"\\u{ord(each):04x}"
        if each in _TURNING or unicodedata.category(each) in ("Cs", "Zl", "Zp")
        else each
        for each in _UNSTORABLE.sub(_escape, str(name))
    )


def markdown(name: object) -> str:
    """Text that Markdown and the HTML within it show as it is, on one line, also in a table."""
    text = _MARKED_UP.sub(lambda found: "\\" + found[0], shown(name))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("://", "&#58;//")


def csv_path(file: str) -> str:
    """A relative path that no spreadsheet takes for a formula: still the same file.

    Args:
        file: in its stored form.
    """
    return f"./{file}" if _FORMULA.match(file) else file


def csv_text(text: str) -> str:
    """Text that no spreadsheet takes for a formula: such text gets an apostrophe before it.

    Numbers are no formulas and stay. Text that has apostrophes before a formula gets one more,
    so that taking the first one away always gives the text itself.
    """
    if _NUMBER.fullmatch(text) or not _FORMULA.match(text.lstrip("'")):
        return text
    return f"'{text}"


def from_csv(text: str) -> str:
    """The text that :func:`csv_text` was made from."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text.lstrip("'")) else text


def _escape(found: "re.Match[str]") -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, says PEP 383
        code -= 0xDC00
    elif 0x80 <= code <= 0x9F:  # a character, while \x80 is a byte
        return f"\\u{code:04x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _unescape(found: "re.Match[str]") -> str:
    if found[0] == "\\\\":
        return "\\"
    byte, character = found[1], found[2]
    if byte is None:
        return chr(int(character, 16))
    code = int(byte, 16)
    return chr(code if code < 0x80 else 0xDC00 + code)
