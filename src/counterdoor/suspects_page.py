"""The suspects for a human's eye: one HTML page that needs no other file and no network."""

import io
import json
import math
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from counterdoor.names import csv_path, csv_text, from_csv, shown

SHOWN = 5000
"""Suspects on the page at most, the most suspicious."""
CONFLICTS = 500
"""Pictures under several labels on the page at most."""
SIDE = 64
"""Largest side of a thumbnail, in pixels."""
LOSSLESS = 32
"""Up to this side thumbnails are kept exactly, so that no faint pattern is lost."""
BINS = 60
FEW = 3
"""With fewer suspects, no average image of a class is shown."""


def render_suspects(
    images_nchw: np.ndarray,
    ledger: pd.DataFrame,
    suspects: pd.DataFrame,
    class_names: list[str],
    files: Sequence[str] = (),
    conflicts: Sequence[Sequence[int]] = (),
) -> str:
    """The page: a histogram of scores, the classes, average images, and all suspects.

    Pictures that are there under more than one label are shown as that, suspected or not.

    The average of a class's suspects minus that of its other images tends to show a
    trigger that lies at one place, or all over them.

    Args:
        images_nchw: training images, uint8, shape (N, C, H, W), in [0, 255].
        ledger: with ``label``, ``score`` and ``suspect``.
        suspects: the most suspicious first, with ``sample_id``, ``file``, ``label`` (a
            name), ``score``, ``rank``, ``pseudo_label`` and ``reason``. What the page saves is as
            safe to open as ``suspects.csv``.
        class_names: one name a class.
        files: of each row of ``ledger`` what it was read from; needed with ``conflicts``.
        conflicts: groups of rows whose images are equal, and their labels are not.
    """
    environment = Environment(
        loader=PackageLoader("counterdoor"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    listed = suspects.head(SHOWN)
    sheet = _sheet(images_nchw[listed["sample_id"].to_numpy(np.int64)])
    columns = ["file", "label", "score", "rank", "pseudo_label", "reason"]
    told = listed[columns].to_dict(orient="list")
    told["file"] = [csv_path(file) for file in told["file"]]  # for the list that the page saves
    for name in ("label", "pseudo_label"):
        told[name] = [csv_text(from_csv(label)) for label in told[name]]
    return environment.get_template("suspects.html.j2").render(
        n=len(ledger),
        n_suspects=len(suspects),
        n_shown=len(listed),
        classes=_classes(images_nchw, ledger, class_names),
        histogram=_histogram(ledger),
        sheet=sheet,
        n_conflicts=len(conflicts),
        conflicts=_conflicts(images_nchw, ledger, class_names, files, conflicts[:CONFLICTS]),
        data=json.dumps(told).replace("<", "\\u003c"),  # a file's name may hold a tag
    )


def _classes(
    images_nchw: np.ndarray, ledger: pd.DataFrame, class_names: list[str]
) -> list[dict[str, Any]]:
    """Counts of each class and, where there are enough suspects, its average images."""
    labels, suspect = ledger["label"].to_numpy(), ledger["suspect"].to_numpy()
    told = []
    for label, name in enumerate(class_names):
        own = np.flatnonzero((labels == label) & suspect)
        rest = np.flatnonzero((labels == label) & ~suspect)
        row: dict[str, Any] = {
            "name": shown(name),
            "n": len(own) + len(rest),
            "suspects": len(own),
            "share": len(own) / max(len(own) + len(rest), 1),
            "pictures": [],
        }
        if min(len(own), len(rest)) >= FEW:
            means = [_mean(images_nchw, rows) for rows in (own, rest)]
            difference = means[0] - means[1]
            largest = float(np.abs(difference).max()) or 1.0
            row["pictures"] = [
                ("suspects", _picture(means[0])),
                ("others", _picture(means[1])),
                ("difference", _picture(127.5 + 127.5 * difference / largest)),
            ]
            row["largest"] = largest
        told.append(row)
    return sorted(told, key=lambda each: -each["share"])


def _conflicts(
    images_nchw: np.ndarray,
    ledger: pd.DataFrame,
    class_names: list[str],
    files: Sequence[str],
    conflicts: Sequence[Sequence[int]],
) -> list[dict[str, Any]]:
    """A picture each, with the files and labels that it has."""
    labels, suspect = ledger["label"].to_numpy(), ledger["suspect"].to_numpy()
    return [
        {
            "picture": _encoded(_small(_image(images_nchw[rows[0]])), "PNG"),
            "rows": [
                {
                    "file": shown(files[row]),
                    "label": shown(class_names[labels[row]]),
                    "suspect": bool(suspect[row]),
                }
                for row in rows
            ],
        }
        for rows in conflicts
    ]


def _mean(images_nchw: np.ndarray, rows: np.ndarray, most: int = 2000) -> np.ndarray:
    """The average of these images, or of so many of them, evenly chosen; float (C, H, W)."""
    chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(np.int64)]
    mean: np.ndarray = images_nchw[chosen].mean(axis=0, dtype=np.float64)
    return mean


def _histogram(ledger: pd.DataFrame) -> dict[str, Any]:
    """Heights in [0, 1], on a log scale, of the scores of suspects and others in equal bins."""
    scores, suspect = ledger["score"].to_numpy(float), ledger["suspect"].to_numpy(bool)
    low, high = (float(scores.min()), float(scores.max())) if len(scores) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    counts = [np.histogram(scores[flags], edges)[0] for flags in (~suspect, suspect)]
    largest = math.log1p(max(int(each.max()) for each in counts)) or 1.0
    others, found = ([math.log1p(count) / largest for count in each] for each in counts)
    return {"others": others, "suspects": found, "low": edges[0], "high": edges[-1]}


def _picture(image_chw: np.ndarray) -> str:
    """A PNG, base64, of levels that are rounded and clipped to [0, 255]."""
    levels = np.clip(np.rint(image_chw), 0, 255).astype(np.uint8)
    return _encoded(_image(levels), "PNG")


def _image(levels_chw: np.ndarray) -> Image.Image:
    grey = len(levels_chw) == 1
    return Image.fromarray(
        np.ascontiguousarray(levels_chw[0] if grey else levels_chw.transpose(1, 2, 0))
    )


def _sheet(images_nchw: np.ndarray) -> dict[str, Any]:
    """All thumbnails in one image, row by row, as WebP in base64."""
    n, _, height, width = images_nchw.shape
    size = _size(width, height)
    across = max(1, math.ceil(math.sqrt(n)))
    down = max(1, math.ceil(n / across))
    mode = "L" if images_nchw.shape[1] == 1 else "RGB"
    sheet = Image.new(mode, (across * size[0], down * size[1]))
    for number, levels in enumerate(images_nchw):
        small = _small(_image(levels))
        sheet.paste(small, (number % across * size[0], number // across * size[1]))
    exact = max(size) <= LOSSLESS
    data = _encoded(sheet, "WEBP", lossless=exact, quality=80 if exact else 90)
    return {"data": data, "width": size[0], "height": size[1], "across": across, "down": down}


def _size(width: int, height: int) -> tuple[int, int]:
    """Width and height of a thumbnail."""
    factor = min(1.0, SIDE / max(height, width))
    return max(1, round(width * factor)), max(1, round(height * factor))


def _small(image: Image.Image) -> Image.Image:
    size = _size(*image.size)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, form: str, **how: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, **how)
    return b64encode(buffer.getvalue()).decode("ascii")
