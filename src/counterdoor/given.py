"""What is typed after ``--params``, as values."""

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from counterdoor.comparison import nested
from counterdoor.config import STAGES
from counterdoor.refusal import shown

SHORT = {"source_path": "ingest.source.path", "trusted_path": "ingest.trusted_path"}
"""Run parameters with a short name, and where they stand."""

PLACES = (
    *SHORT,
    *SHORT.values(),
    "attack.pattern",
    "attack.patch_image",
    "canary.pattern",
    "canary.patch_image",
)
"""Run parameters that are paths: they are taken as typed."""

KNOWN = {*SHORT, "max_minutes", *chain(*chain(*STAGES.values()))}
"""The first name of every run parameter."""

_KEY = re.compile(r"(?:^|,)\s*([A-Za-z_]\w*(?:\.\w+)*)\s*=")
_OPENING = ("[", "{", "'", '"')


def run_parameters(text: str) -> dict[str, Any]:
    """Values from ``name=value``, by name or dotted path, separated by commas.

    A comma only separates where a name and ``=`` follow, so lists need no quotes. Values are
    YAML without comments. A path is taken as it is typed: it goes on to the end, or to a comma,
    the name of a parameter and ``=``.

    Raises:
        ValueError: naming the part that is no ``name=value``, or whose value cannot be read.
    """
    return nested({key: _value(key, value) for key, value in _parts(text)})


def _parts(text: str) -> Iterator[tuple[str, str]]:
    text = text.lstrip(" ,")
    if not text:
        return
    found = list(_KEY.finditer(text))
    if not found or found[0].start() > 0:
        raise ValueError(_no_value(text.partition(",")[0]))
    kept: list[re.Match[str]] = []
    for each in found:
        within_a_path = kept and kept[-1][1] in PLACES
        if not within_a_path or each[1].partition(".")[0] in KNOWN:
            kept.append(each)
    for each, following in zip(kept, [*kept[1:], None], strict=True):
        yield each[1], text[each.end() : following.start() if following else len(text)]


def _value(key: str, text: str) -> Any:
    if key in PLACES:
        return text
    text = text.strip(" ,")
    if not text.startswith(_OPENING):
        if "," in text:
            raise ValueError(_no_value(text.partition(",")[2].strip()))
        if " #" in text:
            return text
    try:
        read: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{key} is {shown(text)}, which YAML cannot read; quote it") from error
    value = read["value"]
    return text if isinstance(value, Mapping) and not text.startswith("{") else value


def _no_value(part: str) -> str:
    return f"--params has {shown(part)}, which is no name=value"
