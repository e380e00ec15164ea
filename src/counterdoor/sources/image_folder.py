"""Images of one's own: a folder a class."""

import os
from pathlib import Path
from typing import Literal

from counterdoor.sources.base import FileSource, ImageSet, OnCorrupt, image_set, read_files
from counterdoor.sources.decoding import Decoded

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}


class ImageFolder(FileSource):
    """Images in a folder a class, below train/ and test/ (or val/), or all below one folder.

    A class is named by its folder, and classes are ordered by that name. Every file at
    any depth below it counts as an image, except hidden ones. Of ``test/`` and ``val/``
    the first that is there is the test part; without ``train/`` the class folders lie in
    ``path`` itself, and the test part is drawn from them.

    Damaged files are left out by default, unlike in published data sets: in a folder of
    unknown origin they are to be expected, and they are listed and counted.

    Attributes:
        path: the folder.
    """

    name: Literal["image_folder"] = "image_folder"
    path: str
    on_corrupt: OnCorrupt = "skip"

    def __call__(self) -> ImageSet:
        """Read and decode all images.

        Raises:
            ValueError: if a folder is missing or cannot be listed, a class has no
                file or only damaged ones, the test part has a class that the training
                part has not, or the images differ in size and none is set.
        """
        root = Path(self.path)
        train = root / "train"
        test = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
        if not train.is_dir():
            if test is not None:
                raise ValueError(f"{root} has {test.name}/ but no train/; add it")
            train = root
        names = class_folders(train)
        parts = [self._read(train, names)]
        if test is not None:
            if unknown := sorted(set(class_folders(test)) - set(names)):
                raise ValueError(
                    f"{test} has classes that {train} has not: {', '.join(unknown)}; give them "
                    "training images, or take them out"
                )
            parts.append(self._read(test, names))
        return image_set(names, parts[0], parts[1] if test is not None else None)

    def _read(self, folder: Path, names: tuple[str, ...]) -> Decoded:
        files = [
            (file, label)
            for label, name in enumerate(names)
            if (folder / name).is_dir()
            for file in files_below(folder / name)
        ]
        return read_files(files, self.form, self.path, self.on_corrupt)


def class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the folders in ``folder`` that are not hidden, sorted.

    Raises:
        ValueError: if there is no such folder, or no folder in it.
    """
    try:
        found = [each.name for each in os.scandir(folder) if each.is_dir()]
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be read ({error.strerror}); set ingest.source.path to a folder that "
            "has a folder a class, or train/ and test/ with those"
        ) from error
    names = tuple(sorted(name for name in found if not name.startswith(".")))
    if not names:
        raise ValueError(f"{folder} has no folders in it; put the images in a folder a class")
    return names


def files_below(folder: Path) -> list[Path]:
    """All files at any depth that are not hidden, sorted; links are followed, each folder once.

    A folder named as an image counts as a file: it will be rejected as one, and listed.

    Raises:
        ValueError: if a folder cannot be listed or there is no file.
    """

    def fail(error: OSError) -> None:
        raise ValueError(
            f"{error.filename} cannot be listed ({error.strerror}); give yourself the permission, "
            "or take it out"
        ) from error

    found: list[Path] = []
    seen = set()
    for place, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        images = [each for each in folders if Path(each).suffix.lower() in SUFFIXES]
        folders[:] = sorted(each for each in folders if each[0] != "." and each not in images)
        found += [Path(place, each) for each in (*files, *images) if each[0] != "."]
    if not found:
        raise ValueError(f"the class folder {folder} holds no file; fill it, or take it out")
    return sorted(found)
