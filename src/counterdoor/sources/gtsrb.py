"""GTSRB as torchvision downloads it."""

import csv
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from counterdoor.sources.base import ImageSet, OnCorrupt, Pixels, image_set, read_files
from counterdoor.sources.downloaded import TorchvisionSource

CLASS_NAMES = (
    *("limit 20", "limit 30", "limit 50", "limit 60", "limit 70", "limit 80", "end of limit 80"),
    *("limit 100", "limit 120", "no overtaking", "no overtaking by lorries"),
    *("priority at next crossing", "priority road", "give way", "stop", "no vehicles"),
    *("no lorries", "no entry", "danger", "bend to the left", "bend to the right", "double bend"),
    *("uneven road", "slippery road", "road narrows", "road works", "traffic lights"),
    *("pedestrians", "children", "bicycles", "snow or ice", "wild animals", "end of all limits"),
    *("turn right", "turn left", "straight ahead", "straight or right", "straight or left"),
    *("keep right", "keep left", "roundabout", "end of no overtaking"),
    "end of no overtaking by lorries",
)
"""What the 43 signs say, by class number."""


class Gtsrb(TorchvisionSource):
    """GTSRB: 26,640 training and 12,630 test traffic signs of many sizes, 43 classes.

    Attributes:
        on_corrupt: whether a file that cannot be decoded is left out, and listed among
            the rejected, or is an error.
    """

    unpacked: ClassVar[str] = (
        "gtsrb/GTSRB/Training, gtsrb/GTSRB/Final_Test and gtsrb/GT-final_test.csv (276 MB)"
    )

    name: Literal["gtsrb"] = "gtsrb"
    image_size: Pixels | tuple[Pixels, Pixels] | None = 32
    on_corrupt: OnCorrupt = "fail"

    def _dataset(self, train: bool) -> Any:
        from torchvision.datasets import GTSRB

        return GTSRB(self.path, split="train" if train else "test", download=self.download)

    def __call__(self) -> ImageSet:
        """Read both parts, after downloading them if need be.

        Raises:
            ValueError: if they are not there and cannot be downloaded, or a file is damaged.
        """
        for part in (True, False):
            self._open(train=part)
        base = Path(self.path) / "gtsrb"
        files = sorted((base / "GTSRB" / "Training").glob("*/*.ppm"))
        train = [(file, int(file.parent.name)) for file in files]
        with (base / "GT-final_test.csv").open(newline="") as table:
            test = [
                (base / "GTSRB" / "Final_Test" / "Images" / row["Filename"], int(row["ClassId"]))
                for row in csv.DictReader(table, delimiter=";")
            ]
        read = partial(read_files, form=self.form, root=self.path, on_corrupt=self.on_corrupt)
        return image_set(CLASS_NAMES, read(train), read(test))
