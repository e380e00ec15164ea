"""Training, test and validation part: how people spell them, and which of them are read."""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from counterdoor.names import shown

Part = Literal["train", "test", "eval", "valid"]

SPELLINGS: Mapping[str, Part] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("eval", "evaluation"), "eval"),
    **dict.fromkeys(("valid", "val", "validation", "validate", "dev"), "valid"),
}
"""How parts are called, whatever the case; ``val_set``, ``seg_train``, ``testData`` are as well."""

FILLERS = re.compile(r"(set|data|dataset|images?|imgs?|pictures?|split|part|seg|folder)s?")

TESTED: tuple[Part, ...] = ("test", "eval", "valid")
"""Of these the first that there is, and that has labels, is the test part."""


def part_of(name: str) -> Part | None:
    """Which part a folder or file of this name is by its spelling; ``None`` if none."""
    words = [word for word in re.split(r"[^a-z]+", name.casefold()) if word]
    told = {_spelt(word) for word in words if not FILLERS.fullmatch(word)}
    return told.pop() if len(told) == 1 else None


def _spelt(word: str) -> Part | None:
    if word in SPELLINGS:
        return SPELLINGS[word]
    for spelling, part in SPELLINGS.items():
        if word.startswith(spelling) and FILLERS.fullmatch(word[len(spelling) :]):
            return part
    return None


def sorted_out(names: Iterable[str], place: str) -> dict[Part, str]:
    """Which of these folders is which part.

    Args:
        names: of folders.
        place: where they lie, for messages.

    Raises:
        ValueError: if two of them are the same part.
    """
    found: dict[Part, str] = {}
    for name in names:
        part = part_of(name)
        if part is not None and part in found:
            raise ValueError(
                f"{shown(place)} has {shown(found[part])}/ and {shown(name)}/, both a {part} part; "
                "put them together, or take one out"
            )
        if part is not None:
            found[part] = name
    return found
