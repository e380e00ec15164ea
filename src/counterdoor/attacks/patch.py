"""A black-and-white patch as a setting."""

from typing import Annotated, Literal

from pydantic import AfterValidator

Pattern = tuple[tuple[Literal[0, 1], ...], ...]


def _rectangular(patch: Pattern) -> Pattern:
    if not patch or not patch[0] or len({len(row) for row in patch}) != 1:
        raise ValueError("the patch needs at least one row, and rows of equal length")
    return patch


Patch = Annotated[Pattern, AfterValidator(_rectangular)]
"""A rectangle row by row: 1 = white, 0 = black."""
